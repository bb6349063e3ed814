"""More iterations, or fewer: a run continues one of another length to the byte, or says why not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.launching import lengths
from harness.launching.lengths import other_lengths
from harness.launching.plan import describe, foresee
from harness.runs.folder import checkpoints_of
from harness.runs.state import look_at_all
from harness.study.spec import Sweep
from mixgrpo import train
from mixgrpo.runs.folder import claim
from tests.harness.lab import SMALL, Lab
from tests.harness.launching.toys import launch, same, write_sweep

pytestmark = pytest.mark.usefixtures("toy_site")

STRATEGIES: dict[str, dict[str, Any]] = {
    "constant": {},
    "released": {"window.at_end": "released"},
    "random": {"window.strategy": "random"},
    "linear": {"window.strategy": "linear-decay"},
    "exp": {"window.strategy": "exp-decay", "window.threshold": 1, "window.decay": 0.5},
    "warm": {"optimizer.warmup": 5},
}


def long(arms: dict[str, dict[str, Any]], iterations: int) -> dict[str, dict[str, Any]]:
    return {name: {**arm, "iterations": iterations} for name, arm in arms.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def planned(sweep: Sweep, runs: Path) -> str:
    states = look_at_all(sweep, runs)
    return describe(sweep, states, 1, foresee(sweep, states, runs))


def test_more_and_fewer_iterations_give_the_bytes_of_a_run_made_at_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    short, _ = launch(write_sweep(tmp_path, long(STRATEGIES, 7)), runs)
    before = {arm: content(state.folder) for arm, state in short.items()}
    sweep = write_sweep(tmp_path, long(STRATEGIES, 10))
    assert len(other_lengths(sweep, runs, sweep.runs)) == len(STRATEGIES)
    assert "  continues    constant-seed0-" in (plan := planned(sweep, runs))
    assert "after its 7 iterations" in plan
    states, said = launch(sweep, runs)
    for arm, state in states.items():
        assert state.state == "finished"
        (attempt,) = state.attempts
        assert attempt.began_at == 7, arm
        alone = tmp_path / "alone" / arm
        train.run(state.run.config, alone)
        assert same(state.folder) == same(alone), arm
        assert content(short[arm].folder) == before[arm]  # it is another run, and stays
    continued = f"constant-seed0: continues {short['constant'].folder.name} after its 7 iterations"
    assert continued in said
    # Evaluations of the shorter run's own end are not the longer one's (every 3, and the last).
    evals = (states["constant"].folder / "eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in evals] == [0, 3, 6, 9, 10]

    # Fewer: from the newest checkpoint before the end that was left (every 5, the last two).
    fewer, _ = launch(write_sweep(tmp_path, long({"constant": {}}, 8)), runs)
    assert [a.began_at >= 7 for a in fewer["constant"].attempts] == [True]
    train.run(fewer["constant"].run.config, tmp_path / "fewer")
    assert same(fewer["constant"].folder) == same(tmp_path / "fewer")


def test_why_a_run_starts_from_zero_is_said(tmp_path: Path) -> None:
    """Each reason in --plan and by the launcher, and the result is right all the same."""
    runs = tmp_path / "runs"
    arms: dict[str, dict[str, Any]] = {
        "rate": {"optimizer.schedule": "linear"},
        "thinned": {"optimizer.lr": 0.002},
        "code": {"optimizer.lr": 0.003},
        "damaged": {"optimizer.lr": 0.004},
        "lines": {"optimizer.lr": 0.005},
    }
    short, _ = launch(write_sweep(tmp_path, long(arms, 6)), runs)
    shutil.rmtree(short["thinned"].folder / "checkpoints")
    record = short["code"].folder / "attempts" / "1.json"
    attempt = json.loads(record.read_text())
    attempt["made_on"]["code"] = "x"
    record.write_text(json.dumps(attempt))
    (short["damaged"].folder / "config.yaml").write_text("}{")
    (short["lines"].folder / "metrics.jsonl").write_text("")
    sweep = write_sweep(tmp_path, long(arms, 8))
    plan = planned(sweep, runs)
    states, said = launch(sweep, runs)
    output = "\n".join(said)
    for arm, why in (
        ("rate", "the learning rate depends on the number of iterations (optimizer.schedule: lin"),
        ("thinned", "it has no checkpoint of at most 6 iterations"),
        ("code", "it was made by other code of this program"),
        ("lines", "metrics.jsonl: lost "),
    ):
        text = f"{arm}-seed0 starts from zero, not from {short[arm].folder.name} with its 6 iter"
        assert any(text in line and why in line for line in plan.splitlines()), plan
        assert any(text in line and why in line for line in output.splitlines()), output
    for state in states.values():
        assert state.state == "finished"
        assert [a.began_at for a in state.attempts] == [0]


def test_runs_that_differ_in_more_than_their_length_are_no_source(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, long({"a": {"optimizer.lr": 0.002}}, 6)), runs)
    sweep = write_sweep(tmp_path, long({"a": {"optimizer.lr": 0.003}}, 8))
    assert other_lengths(sweep, runs, sweep.runs) == []
    assert "starts from zero" not in planned(sweep, runs)


def test_of_many_runs_no_file_is_parsed_and_long_names_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_long_names(iterations: int) -> Sweep:
        sweep = write_sweep(tmp_path, long({"a": {}, "b": {"window.interval": 7}}, iterations))
        return replace(sweep, runs=tuple(replace(r, arm=250 * r.arm) for r in sweep.runs))

    runs, before = tmp_path / "runs", with_long_names(6)
    for run in before.runs:
        folder = runs / before.name / run.folder_name
        folder.mkdir(parents=True)
        claim(run.config, folder)
    monkeypatch.setattr(lengths, "load_config", None)
    sweep = with_long_names(8)
    found = other_lengths(sweep, runs, sweep.runs)
    assert [other.run for other in found] == list(before.runs)
    assert [other.wanted for other in found] == list(sweep.runs)


def test_an_edited_number_of_iterations_continues_and_names_what_was_there(lab: Lab) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2")[0] == 0
    old = {name: state.folder for name, state in lab.states().items()}
    lab.write(SMALL.replace("iterations: 6", "iterations: 8"))
    code, output = lab.finish("--plan")
    assert code == 0, output
    assert f"continues    {old['interval=1-seed0'].name} after its 6 iterations" in output
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    for name, folder in old.items():
        assert f"{name}: continues {folder.name} after its 6 iterations" in output
        assert f"  {folder}: {name} with 6 iterations, not 8" in output
        assert lab.iterations(name) == list(range(8))
    assert checkpoints_of(old["interval=1-seed0"]) == [2, 4, 6]
    code, output = lab.finish("--prune")
    assert code == 2, output
    assert "finished; interval=1-seed0 with 6 iterations, not 8" in output
    assert all(folder.exists() for folder in old.values())
    # --set is the same, and the file's own runs are what it continues.
    code, output = lab.finish("--set", "iterations=9", "--jobs", "2")
    assert code == 0, output
    longer = lab.states()["interval=3-seed0"].folder.name
    assert f"interval=3-seed0: continues {longer} after its 8 iterations" in output
