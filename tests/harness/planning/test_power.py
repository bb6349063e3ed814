"""`harness.power`: what it says before anything runs, and after a pilot."""

import math
import re
import shlex
from pathlib import Path

import pytest
from scipy import stats

from harness import power
from harness.evidence.moderation import plain
from harness.planning.power import Measured, describe, measure
from harness.runs.state import look_at_all
from mixgrpo.errors import ConfigError
from tests.harness.lab import Lab
from tests.harness.launching import known


def fewest(effect: float, sd: float, error: float, chance: float) -> int:
    """Seeds of a paired t test with this power, by the noncentral t distribution."""
    for n in range(3, 10_000):
        bound = stats.t.isf(error / 2, n - 1)
        if stats.nct.sf(bound, n - 1, effect / sd * math.sqrt(n)) >= chance:
            return n
    raise AssertionError


def test_seeds_and_runs_are_those_of_a_paired_t_test(tmp_path: Path) -> None:
    sweep = known.write(tmp_path)
    differences = [0.01, 0.05, -0.02, 0.03, 0.00, 0.06]
    widest = Measured("open", plain(differences), 6)
    lines = list(describe(sweep, [], [widest], tmp_path, 0.02, None))
    assert lines[-1] == "hours are not known: no run was made here"
    found = [line for line in lines if "fixed seeds" in line]
    for line, chance in zip(found, (0.8, 0.9), strict=True):
        n = fewest(0.02, stats.tstd(differences), 0.05 / 3, chance)
        assert re.search(rf"fixed seeds: {n} \[\d+, \d+\] seeds: {4 * n} runs$", line), (n, line)


def test_spreads_are_those_of_the_runs_that_have_finished(tmp_path: Path) -> None:
    sweep = known.write(tmp_path)
    assert measure(sweep, look_at_all(sweep, tmp_path / "runs")) == []
    known.launch(sweep, tmp_path / "runs", stop_after=1)
    measured = measure(sweep, look_at_all(sweep, tmp_path / "runs"))
    assert [(one.arm, one.pairs) for one in measured] == [("far", 5), ("same", 5), ("open", 5)]
    open_ = measured[2].spread
    assert open_.measured == pytest.approx(0.08 * stats.tstd(known.WAVE[:5]))


@pytest.mark.parametrize("option", [("--effect", 0.0, None), ("--margin", 0.1, -1.0)])
def test_an_effect_is_above_zero(tmp_path: Path, option: tuple[str, float, float | None]) -> None:
    name, effect, margin = option
    with pytest.raises(ConfigError, match=f"{name}: give a number above 0"):
        power.main(known.write(tmp_path).file, effect, margin)


def test_without_runs_the_pilot_is_said_and_does_what_it_says(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--pilot 3 says which runs to make first"):
        power.main(lab.file, 0.02, runs=lab.runs)
    with pytest.raises(ConfigError, match=r"--pilot 3: .* has 2 seeds"):
        power.main(lab.file, 0.02, pilot_=3, runs=lab.runs)
    lab.write(lab.file.read_text().replace("seeds: 2", "seeds: 5"))
    power.main(lab.file, 0.02, pilot_=3, runs=lab.runs)
    said, command, _ = capsys.readouterr().out.splitlines()
    assert said.endswith("run the first 3 seeds of every arm, 6 runs:")
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "harness.sweep", str(lab.file)]
    noise = {f"interval=3-seed{seed}": {"score": 0.5 + 0.01 * seed**2} for seed in range(3)}
    code, output = lab.finish("--jobs", "2", *words[4:], fake=noise)
    assert code == 0, output
    assert "6 of 6 runs finished" in output
    power.main(lab.file, 0.02, margin=0.05, runs=lab.runs)
    output = capsys.readouterr().out
    assert "(3 pairs)" in output
    assert "to show that an arm is equal within ±0.05" in output
    assert re.search(
        r"with 80 %\n +fixed seeds: [\d,]+ \[.*\] seeds: [\d,]+ runs, \S+ core", output
    )
