"""Seeds until it is decided, with scores that are known: which runs are made, and what is said."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from harness.analysis.analyse import analyse
from harness.analysis.results import begun, collect
from harness.comparison import Comparison
from harness.evidence.sequential import Plan, follow
from harness.launching.plan import describe
from harness.launching.status import Observer, as_data, as_text
from harness.planning import budget
from harness.planning.budget import hours
from harness.planning.standing import decide, stand, with_runs
from harness.planning.words import outcome, planned
from harness.runs.state import look_at_all
from harness.slurm.scheduler import Scheduler
from harness.study.load import load_sweep
from harness.study.margin import Margin
from harness.study.spec import Budget, Sweep, only

from . import known
from .known import ARMS, LOOKS, launch, write

SEEDS = {"reference": 32, "far": 5, "same": 8, "open": 32}
"""What each arm needs: `far` is decided at the first look, `same` at the second, `open` never."""


@pytest.fixture(autouse=True)
def nothing_broken() -> Iterator[None]:
    yield
    known.BROKEN.clear()


def made(runs: Path) -> dict[str, int]:
    """The results that lie on the disk, by arm."""
    folders = [f.parent.name for f in (runs / "known").glob("*-seed*/result.json")]
    return {arm: sum(name.startswith(f"{arm}-seed") for name in folders) for arm in ARMS}


def test_each_arm_gets_the_seeds_that_it_needs_and_each_look_is_one_submission(
    tmp_path: Path,
) -> None:
    sweep = write(tmp_path)
    assert sweep.seeds == tuple(range(32))
    standing, submitted, said, states = launch(sweep, tmp_path / "runs")
    assert made(tmp_path / "runs") == SEEDS
    assert {state.state for state in states} == {"finished"}
    assert [len(names) for names in submitted] == [20, 9, 8, 8, 16, 16]
    assert sorted(submitted[1]) == sorted(
        f"{arm}-seed{seed}" for arm in ("reference", "same", "open") for seed in (5, 6, 7)
    )
    assert submitted[2] == [
        f"{arm}-seed{seed}" for seed in (8, 9, 10, 11) for arm in ("reference", "open")
    ]
    verdicts = {arm: found[-1].verdict for arm, found in standing.decisions.items()}
    assert verdicts == {"far": "better", "same": "equal", "open": "undecided"}
    assert (standing.end, standing.asked) == ("last look", SEEDS)
    # The levels of the specification for three comparisons; the differences are known.
    second = standing.decisions["same"][1]
    df = second.comparison.spread.degrees_of_freedom
    assert second.boundary == pytest.approx(stats.t.isf(0.000746 / 2, df), rel=1e-3)
    differences = [known.score("same", n) - known.score("reference", n) for n in range(8)]
    assert second.comparison.mean == pytest.approx(sum(differences) / 8)
    assert "not decided yet: same and open; look 2 at 8 seeds begins" in said
    said_in_the_end = outcome(sweep, standing)
    assert [line.split(",")[0] for line in said_in_the_end] == [
        "far: better after 5 seeds",
        "same: equal (within ±0.02) after 8 seeds",
        "open: undecided after 32 seeds",
        "77 runs were needed; 32 seeds for every arm would have been 128: 51 saved",
    ]
    # The report has the verdicts and intervals of the looks.
    results = begun(sweep, collect(sweep, tmp_path / "runs"))
    for found in analyse(sweep, results).compared:
        decision = standing.decisions[found.arm][-1]
        assert (found.verdict, len(found.seeds)) == (decision.verdict, decision.look.pairs)
        assert found.margin == known.MARGIN
        low, high = decision.comparison.interval.low, decision.comparison.interval.high
        assert (found.simultaneous.low, found.simultaneous.high) == pytest.approx((low, high))
        assert (found.p < 0.05 / 3) == (found.simultaneous.sign != 0)
    # Nothing is left to do for the same command.
    again, submitted, said, _ = launch(sweep, tmp_path / "runs")
    assert (submitted, again.decisions) == ([], standing.decisions)


def test_a_report_looks_when_the_launcher_looks(tmp_path: Path) -> None:
    """Not at a look under way, and not at less than the launcher where the last seed fails."""
    sweep = write(tmp_path)
    known.BROKEN.add(("far", 4))
    standing, _, _, _ = launch(sweep, tmp_path / "runs", stop_after=2)
    found = {c.arm: c for c in reported(sweep, tmp_path / "runs")}
    decision = standing.decisions["far"][-1]
    assert (found["far"].verdict, found["far"].seeds) == ("better", (0, 1, 2, 3))
    assert decision.look.pairs == 4
    assert math.isnan(found["far"].p_sign_flip)
    # One run of the first look is missing: nobody looks at any arm.
    lost = next((tmp_path / "runs" / "known").glob("open-seed2-*")).resolve()
    (lost / "result.json").unlink()
    found = {c.arm: c for c in reported(sweep, tmp_path / "runs")}
    assert {(c.verdict, c.reason) for c in found.values()} == {("undecided", "not looked at")}
    assert not any(c.seeds for c in found.values())


def test_a_report_of_some_arms_of_a_sweep_with_looks(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    some = with_runs(sweep, [run for run in sweep.runs if run.arm in ("reference", "far")])
    launch(sweep, tmp_path / "runs", stop_after=1, part=some)
    assert {c.reason for c in reported(sweep, tmp_path / "runs")} == {"not looked at"}


def test_a_margin_that_is_known_later_does_not_change_an_earlier_look() -> None:
    """It is a part of the gain, which is shown from twelve seeds on; the first seeds are equal
    within that margin."""
    noise = np.random.default_rng(0).standard_normal(12)
    gains = {("reference", s): 0.4 + (4.0 if s < 5 else 0.1) * noise[s] for s in range(12)}
    scores = {
        (arm, s): 0.5 + (arm == "same") * (0.05 * (s >= 5) + 0.002 * noise[s])
        for arm in ("reference", "same")
        for s in range(12)
    }
    sweep = SimpleNamespace(
        arms=tuple(SimpleNamespace(name=name) for name in ("reference", "same")),
        looks=(5, 8, 12),
        seeds=tuple(range(12)),
        references={"reference": "reference", "same": "reference"},
        margin=Margin(0.25, of_gain=True),
    )
    last = decide(sweep, scores, gains, 12)["same"]  # type: ignore[arg-type]
    for count, made in zip(sweep.looks, last, strict=False):
        then = decide(sweep, scores, gains, count)["same"][-1]  # type: ignore[arg-type]
        assert (made.comparison.margin, made.verdict) == (then.comparison.margin, then.verdict)
    assert last[0].comparison.margin is None


def test_arms_that_compute_the_same_are_equal_at_the_first_look() -> None:
    made = follow({"same": [0.0] * 12, "other": [0.1, -0.1] * 6}, Plan((5, 8, 12), 2))
    assert [(d.look.seeds, d.verdict) for d in made["same"]] == [(5, "equal")]
    assert len(made["other"]) == 3


def reported(sweep: Sweep, runs: Path) -> tuple[Comparison, ...]:
    return analyse(sweep, begun(sweep, collect(sweep, runs))).compared


def test_a_command_that_ended_continues_at_its_look(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    launch(sweep, tmp_path / "runs", stop_after=2)
    assert made(tmp_path / "runs") == {"reference": 8, "far": 5, "same": 8, "open": 8}
    # Of the second look one run was lost, as by a kill: that look is not made without it.
    lost = next((tmp_path / "runs" / "known").glob("open-seed6-*")).resolve()
    (lost / "result.json").unlink()
    states = look_at_all(sweep, tmp_path / "runs")
    folder = tmp_path / "runs" / "known"
    standing = stand(sweep, states, lambda state: state.state == "finished", folder)
    assert (standing.look, standing.seeds, standing.end) == (2, 8, "")
    assert [len(found) for found in standing.decisions.values()] == [1, 1, 1]
    standing, submitted, _, _ = launch(sweep, tmp_path / "runs")
    assert submitted[0] == ["open-seed6"]
    assert made(tmp_path / "runs") == SEEDS
    assert standing.decisions["same"][-1].look.seeds == 8


def test_a_failed_run_leaves_a_look_with_the_pairs_that_exist(tmp_path: Path) -> None:
    known.BROKEN.add(("same", 2))
    standing, _, _, states = launch(write(tmp_path), tmp_path / "runs")
    assert [s.run.name for s in states if s.state == "failed"] == ["same-seed2"]
    looks = [(d.look.seeds, d.look.pairs) for d in standing.decisions["same"]]
    assert looks[:2] == [(5, 4), (8, 7)]
    assert standing.decisions["same"][-1].verdict == "equal"
    assert standing.decisions["far"][-1].look.pairs == 5
    # The reference's run is missing to all arms.
    known.BROKEN.add(("reference", 0))
    standing, _, _, _ = launch(write(tmp_path), tmp_path / "others")
    assert [found[0].look.pairs for found in standing.decisions.values()] == [4, 3, 4]


def test_a_budget_ends_it_before_a_look_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, folder = write(tmp_path), tmp_path / "runs" / "known"
    launch(sweep, tmp_path / "runs", stop_after=1)
    states = look_at_all(sweep, tmp_path / "runs")
    spent = hours(states, folder, "core")
    assert len(spent) == 20
    assert sum(spent) * 3600 == pytest.approx(
        sum(a.ended - a.started for s in states for a in s.attempts if a.ended), abs=0.1
    )
    assert hours(states, folder, "GPU") == []
    # Of an hour each, 20 runs are made and 9 more fit; those of the third look do not.
    monkeypatch.setattr(
        budget, "hours", lambda made, folder, unit: [1.0 for s in made if s.state == "finished"]
    )
    sweep = replace(sweep, budget=Budget(30, "core"))
    standing, submitted, _, _ = launch(sweep, tmp_path / "runs")
    assert (standing.end, standing.look, len(submitted)) == ("budget", 2, 1)
    assert made(tmp_path / "runs") == {"reference": 8, "far": 5, "same": 8, "open": 8}
    assert outcome(sweep, standing)[2:4] == [
        "open: undecided after 8 seeds, +0.013 [−0.101, 0.128]",
        "ended by the budget of 30 core hours: the look at 12 seeds does not fit",
    ]
    # A first look is made in any case: without it nothing is known.
    sweep = replace(sweep, budget=Budget(1, "core"))
    standing, submitted, _, _ = launch(sweep, tmp_path / "other")
    assert (standing.look, standing.end, len(submitted)) == (1, "budget", 1)
    assert made(tmp_path / "other") == dict.fromkeys(ARMS, 5)


def test_a_part_of_the_arms_runs_the_seeds_of_the_look_that_is_under_way(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    for arms, look in ((["far"], 1), (["same", "open"], 1), (["reference"], 2)):
        standing, _, _, _ = launch(sweep, tmp_path / "runs", part=only(sweep, arms))
        assert standing.look == look
    assert made(tmp_path / "runs") == {"reference": 8, "far": 5, "same": 5, "open": 5}


def test_status_says_of_each_comparison_how_far_it_is(tmp_path: Path) -> None:
    sweep = write(tmp_path)
    runs = tmp_path / "runs"

    def status() -> Observer:
        seen = Observer(sweep, runs, Scheduler(runs / "known"))
        seen.look()
        return seen

    text = as_text(status())
    assert text.startswith("known: 20 runs: 20 waiting\n")
    assert "  far: needs more seeds: not looked at yet" in text
    launch(sweep, runs, stop_after=1)
    seen = status()
    text = as_text(seen)
    assert "seeds until it is decided: look 2 of 6 at 8 seeds" in text
    assert "  far: better after 5 seeds, +0.301 [0.248, 0.355]; |t| 46.57, boundary 8.29" in text
    assert "  open: needs more seeds, undecided after 5 seeds" in text
    assert "to go" in text
    data = as_data(seen)["until_decided"]
    assert (data["look"], data["seeds"], data["end"]) == (2, 8, None)
    far, open_ = data["comparisons"]["far"], data["comparisons"]["open"]
    assert (far["verdict"], far["decided"], far["seeds"]) == ("better", True, 5)
    assert far["to_difference"] < 0 < open_["to_difference"]
    assert open_["next_look"] == 8
    assert open_["boundary"] - abs(open_["statistic"]) == pytest.approx(open_["to_difference"])
    json.dumps(as_data(seen), allow_nan=False)
    assert describe(seen.standing.part_of(sweep), seen.states, 1).startswith(  # type: ignore[union-attr]
        "known: 4 arms x 8 seeds = 32 runs, of which 29 needed now; reference reference"
    )
    assert planned(sweep, seen.standing) == (  # type: ignore[arg-type]
        "seeds until it is decided: looks at 5, 8, 12, 16, 24, 32 seeds, at most 128 runs; now: "
        "look 2 at 8 seeds, 29 runs until then"
    )


def test_fixed_seeds_get_the_usual_looks_when_asked_and_the_same_runs(tmp_path: Path) -> None:
    fixed = write(tmp_path, "4")
    assert (fixed.looks, fixed.seeds) == ((), (0, 1, 2, 3))
    sweep = load_sweep(fixed.file, until_decided=True)
    assert (sweep.looks, sweep.seeds) == (LOOKS, tuple(range(32)))
    assert {run.hash for run in fixed.runs} <= {run.hash for run in sweep.runs}
    assert sweep.report_name == fixed.report_name
    # Seeds that are listed come first, and after them those that nobody has used.
    sweep = load_sweep(write(tmp_path, "[1000, 7]").file, until_decided=True)
    assert sweep.seeds == (1000, 7, *range(1001, 1031))
