"""The sentences of a report: each arm by its own numbers, its own rewards and its own reference."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.analyse import Analysis, analyse
from harness.analysis.results import Results, collect
from harness.reporting import findings, notes, tables
from harness.stats import mean_interval
from harness.study.spec import Sweep
from harness.text import interval
from mixgrpo.settings.config import RunConfig
from tests.harness.synthetic import make_sweep, write_runs

Given = tuple[Sweep, Results]
Change = Mapping[str, tuple[float, float]]
"""Mean and spread over seeds of a reward's change, by reward."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("runs")
    sweep = make_sweep(seeds=5, iterations=12)
    write_runs(sweep, folder, sd=0.01)
    return sweep, collect(sweep, folder)


def train_on(sweep: Sweep, rewards: Mapping[str, tuple[str, ...]]) -> Sweep:
    """The sweep with arms that train on these rewards and measure the other ones."""
    names = ("composition", "palette", "strict")

    def config(arm: str, old: RunConfig) -> RunConfig:
        train = rewards.get(arm, ("composition",))
        held_out = tuple(name for name in names if name not in train)
        changed = {"train": dict.fromkeys(train, 1.0), "held_out": held_out}
        return old.model_copy(update={"rewards": old.rewards.model_copy(update=changed)})

    runs = tuple(replace(run, config=config(run.arm, run.config)) for run in sweep.runs)
    return replace(sweep, runs=runs)


def change(results: Results, changes: Mapping[str, Change]) -> Results:
    """The results with these changes through training instead."""
    runs = results.runs.copy()
    spread = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    for arm, of_arm in changes.items():
        own = runs["arm"] == arm
        for reward, (mean, width) in of_arm.items():
            after = runs.loc[own, f"before_{reward}"] + mean + width * spread
            runs.loc[own, f"after_{reward}"] = after
    return Results(runs, results.metrics, results.evaluations, results.machines)


UP, DOWN, FLAT = (0.1, 0.01), (-0.1, 0.01), (0.0, 0.05)


@pytest.fixture
def mixed(given: Given) -> Analysis:
    """Of palette: one arm is hacked, one falls while nothing rises, one trains on it, one rises."""
    sweep, results = given
    sweep = train_on(sweep, {"interval=12": ("composition", "palette")})
    changes = {
        "interval=9": {"composition": UP, "palette": DOWN, "strict": FLAT},
        "interval=12": {"composition": UP, "palette": (-0.2, 0.01), "strict": FLAT},
        "interval=15": {"composition": UP, "palette": (0.3, 0.01), "strict": FLAT},
        "interval=18": {"composition": FLAT, "palette": (-0.4, 0.01), "strict": FLAT},
    }
    return analyse(sweep, change(results, changes))


def test_rewards_that_fell_and_rose_are_quoted_of_their_own_arms(mixed: Analysis) -> None:
    palette, strict = findings.other_rewards(mixed)
    fell, rose = palette.text.split("; it rose in ")
    rose = rose.split(" It fell while")[0]
    assert " fell in 3 of 4 arms: " in fell
    for label, name, number in (("τ = 9", "interval=9", "−0.100"), ("τ = 18", "", "−0.400")):
        assert re.search(rf"{label} from \S+ to \S+ change {number} \[", fell), (label, fell)
        if name:
            before = mixed.by_name(name).rewards["palette"].before.mean
            assert f"{label} from {before:.3f} to" in fell
    assert "τ = 15" not in fell
    assert rose.startswith("1 of 4 arms: τ = 15 from")
    assert "change +0.300" in rose
    assert "is shown to change in no arm (τ = 15 from" in strict.text


def test_reward_hacking_is_said_of_the_arms_that_do_it_alone(mixed: Analysis) -> None:
    palette, strict = findings.other_rewards(mixed)
    assert (palette.kind, strict.kind) == ("hacking", "change")
    said = palette.text.split(" It fell while")[1]
    # τ = 12 trains on the palette, nothing rose in τ = 18 that it trains on, in τ = 15 both rose.
    assert "that it trains on in τ = 9 (composition):" in said
    assert re.findall(r"τ = \d+", said) == ["τ = 9"]
    assert "reward hacking" in said
    assert "hacking" not in strict.text


def test_a_measure_that_nobody_trains_on_can_be_hacked_too(given: Given) -> None:
    sweep, results = given
    analysis = analyse(
        replace(sweep, measure="strict"),
        change(results, {"interval=9": {"composition": UP, "strict": DOWN}}),
    )
    assert analysis.role("strict") == "only measured"
    said = " ".join(finding.text for finding in findings.other_rewards(analysis))
    assert "The reward strict answers the question. It fell while" in said
    assert "trained on as well" not in said
    assert "In these arms the reward is only measured." in tables.tables(analysis)[1].note


def test_what_is_trained_on_is_said_arm_by_arm(mixed: Analysis) -> None:
    assert mixed.role("composition") == "trained on"
    assert mixed.role("palette") == "trained on in τ = 12, only measured elsewhere"
    assert mixed.by_name("interval=9").trained == ("composition",)
    assert "(trained on in τ = 12, only measured elsewhere)" in (
        findings.other_rewards(mixed)[0].text
    )
    (other,) = (t for t in tables.tables(mixed) if t.title.startswith("The other rewards"))
    assert "palette: trained on in τ = 12, only measured elsewhere; strict: only" in other.note


def test_other_rewards_are_compared_between_the_arms(given: Given) -> None:
    sweep, results = given
    arms = {arm.name: {"strict": UP} for arm in sweep.arms}
    changed = change(results, arms | {"interval=9": {"strict": (-0.1, 0.02)}})
    analysis = analyse(sweep, changed)
    found = analysis.other_comparisons["strict"]
    runs = changed.runs.pivot(index="seed", columns="arm", values="after_strict")
    differences = runs["interval=9"] - runs["interval=15"]
    # Three arms share the error; each reward has its own.
    own = found["interval=9"]
    assert own.simultaneous.level == pytest.approx(1 - 0.05 / 3)
    assert own.spread.measured == pytest.approx(differences.std(ddof=1))
    assert own.margin is None
    assert [c.verdict for c in found.values()].count("worse") == 1
    said = findings.others_compared(analysis)
    assert "; " not in said
    assert "compared with τ = 15 likewise, in strict τ = 9 (by 0." in said
    assert said.endswith("is worse.")
    (table,) = (t for t in tables.tables(analysis) if "the other rewards" in t.title)
    cells = {row[0]: row[table.columns.index("strict")] for row in table.rows}
    assert cells["τ = 9"].endswith("] worse")
    assert not cells["τ = 12"].endswith(("better", "worse"))
    assert findings.others_compared(analyse(sweep, change(results, arms))) == ""


def test_a_gain_counts_only_where_it_holds_for_all_arms_together(given: Given) -> None:
    sweep, results = given
    # 95 % of one arm: half-width 2.776 sd / √5; of four together 4.315.
    sd = 0.1 * np.std([-1, -0.5, 0, 0.5, 1], ddof=1) / np.sqrt(5)
    changes = {arm.name: {"composition": UP} for arm in sweep.arms}
    changes["interval=9"] = {"composition": (3.5 * sd, 0.1)}
    analysis = analyse(sweep, change(results, changes))
    own = analysis.by_name("interval=9").rewards["composition"]
    assert own.change.low > 0 > own.simultaneous.low
    assert own.simultaneous.level == pytest.approx(1 - 0.05 / 4)
    said = findings.gain(analysis)
    assert said.startswith("Training gained in τ = 12, τ = 15 and τ = 18; a gain is not shown in")
    assert "a gain is not shown in τ = 9 (" in said


def test_times_that_are_stated_hold_for_all_arms_together(given: Given) -> None:
    sweep, results = given
    analysis = analyse(sweep, results)
    for result in analysis.arms:
        if result.cost.time_ratio is None or result.cost.time_ratio_simultaneous is None:
            assert analysis.is_reference(result.arm.name)
            continue
        logs = result.cost.time_ratio_simultaneous.level
        assert logs == pytest.approx(1 - 0.05 / 3)
        assert result.cost.time_ratio_simultaneous.low < result.cost.time_ratio.low
    wide = mean_interval([1.0, 1.1, 1.2])
    over_one = replace(wide, low=0.9, high=1.3)
    alone = replace(wide, low=1.05, high=1.15)
    arms = tuple(
        replace(r, cost=replace(r.cost, time_ratio=alone, time_ratio_simultaneous=over_one))
        for r in analysis.arms
    )
    assert findings.cost(replace(analysis, arms=arms)) == ""


def test_arms_that_another_study_timed_are_named_beside_the_times(given: Given) -> None:
    sweep, results = given
    slower = results.metrics.copy()
    mine = slower["arm"] == "interval=12"
    slower.loc[mine, [c for c in slower if c.startswith("seconds_")]] *= 2

    def trained(copied: Callable[[str, int], bool]) -> Analysis:
        runs = results.runs
        keys = zip(runs["arm"], runs["seed"], strict=True)
        runs = runs.assign(trained_by=["methods" if copied(a, s) else "tau" for a, s in keys])
        return analyse(sweep, Results(runs, slower, results.evaluations, results.machines))

    alone = trained(lambda arm, seed: False)
    assert " for τ = 12." in findings.cost(alone)
    assert "another study" not in findings.cost(alone)
    most = trained(lambda arm, seed: arm == "interval=12" and seed > 1)
    ratio = most.by_name("interval=12").cost.time_ratio
    assert ratio is not None
    assert (ratio.n, ratio.known) == (2, False)
    said = findings.cost(most)
    assert said.startswith("No seconds are compared with τ = 15 of τ = 12 (in 3 of 5 seeds): ")
    # One seed less is compared, and the level is that of all arms again.
    one = trained(lambda arm, seed: arm == "interval=12" and seed == 0)
    assert one.by_name("interval=12").cost.time_ratio_simultaneous.n == 4  # type: ignore[union-attr]
    assert " for τ = 12. No seconds are compared" in findings.cost(one)
    # Where the reference is a copy, no arm's seconds compare but those of the same study.
    base = trained(lambda arm, seed: arm in ("interval=15", "interval=12"))
    assert (
        base.by_name("interval=12").cost.time_ratio == alone.by_name("interval=12").cost.time_ratio
    )
    assert "of τ = 9 and τ = 18: another study" in findings.cost(base)


def without(results: Results, gone: Callable[[str, int], bool], state: str) -> Results:
    runs = results.runs.copy()
    lost = np.array([gone(a, s) for a, s in zip(runs["arm"], runs["seed"], strict=True)])
    runs.loc[lost, "state"] = state
    kept = {(a, s) for a, s in zip(runs["arm"][~lost], runs["seed"][~lost], strict=True)}
    metrics = results.metrics
    here = [(a, s) in kept for a, s in zip(metrics["arm"], metrics["seed"], strict=True)]
    return Results(runs, metrics[here], results.evaluations, results.machines)


def test_each_comparison_is_judged_by_its_own_reference(given: Given) -> None:
    sweep, results = given
    within = {
        **dict.fromkeys(("interval=9", "interval=12"), "interval=9"),
        **dict.fromkeys(("interval=15", "interval=18"), "interval=15"),
    }
    grouped = replace(sweep, within=within, within_label="its own", reference="interval=9")
    few = without(results, lambda arm, seed: arm == "interval=9" and seed > 1, "waiting")
    said = findings.answer(analyse(grouped, few))
    assert not said.startswith("Cannot conclude")
    assert "τ = 18 differs from its own by less than" in said
    assert "τ = 12 cannot be judged" in said
    none = without(few, lambda arm, seed: arm == "interval=15" and seed > 1, "waiting")
    said = findings.answer(analyse(grouped, none))
    assert said.startswith("Cannot conclude: no reference has 3 finished seeds")


def test_failed_runs_are_said_to_be_left_out_once(given: Given) -> None:
    sweep, results = given
    failed = without(results, lambda arm, seed: arm in ("interval=9", "interval=12") and seed == 0,
                     "failed")  # fmt: skip
    said = [s for s in notes.missing(analyse(sweep, failed)) if "survived" in s]
    assert said == [
        "Of τ = 9 and τ = 12 some runs failed: every number here is of the seeds that survived, "
        "and says nothing about those that did not."
    ]
    waiting = without(results, lambda arm, seed: arm == "interval=9" and seed == 0, "waiting")
    assert "survived" not in " ".join(notes.missing(analyse(sweep, waiting)))


def test_an_end_that_is_not_zero_is_not_written_as_zero() -> None:
    told = replace(mean_interval([-0.05, -0.03, -0.01]), mean=-0.0258, low=-0.0512, high=-0.0004)
    assert interval(told, signed=True) == "−0.0258 [−0.0512, −0.0004]"
    assert interval(replace(told, high=0.0004), signed=True) == "−0.026 [−0.051, 0.000]"


def test_an_arm_is_said_to_be_worse_by_an_interval_that_leaves_zero_out(given: Given) -> None:
    analysis = analyse(*given)

    def told(low: float, high: float) -> str:
        arms = []
        for result in analysis.arms:
            if result.arm.name == "interval=9":
                assert result.comparison is not None
                size = replace(result.comparison.simultaneous, mean=-0.0258, low=low, high=high)
                comparison = replace(result.comparison, simultaneous=size, verdict="worse")
                result = replace(result, comparison=comparison)
            arms.append(result)
        return findings.answer(replace(analysis, arms=tuple(arms)))

    assert "τ = 9 is worse than τ = 15 by 0.0258 [0.0004, 0.0512]" in told(-0.0512, -0.0004)
    assert "τ = 9 is worse than τ = 15 by 0.026 [0.014, 0.051]" in told(-0.0512, -0.0142)


def test_many_arms_alike_are_counted_not_listed(tmp_path: Path) -> None:
    sweep = make_sweep(intervals=(6, 7, 8, 9, 10, 11, 12, 15), seeds=3, iterations=12)
    write_runs(sweep, tmp_path, sd=0.01)
    analysis = analyse(sweep, collect(sweep, tmp_path))
    assert {c.verdict for c in analysis.compared} == {"undecided"}
    said = findings.answer(analysis)
    assert "all 7 other arms are undecided compared with τ = 15" in said
