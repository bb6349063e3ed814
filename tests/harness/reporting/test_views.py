"""The views of a page, against independent computations and against effects that were planted."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.analysis.analyse import analyse
from harness.analysis.results import Results
from harness.reporting import figures
from harness.reporting.drawing import arm_label
from harness.reporting.views.budget import at_equal_cost, budget, interpolated
from harness.reporting.views.drift import drift
from harness.reporting.views.interaction import interaction, interactions
from harness.reporting.views.position import training_parts
from harness.reporting.views.speedup import formula, speed_ups, speedup
from harness.reporting.views.stability import judged, stability
from harness.reporting.views.turn import _turn, smoothed, turn, turns
from harness.reporting.views.view import View
from harness.reporting.write import write_report
from harness.runs.environment import Machine
from harness.stats import detectable_difference, mean_interval
from harness.study.arms import Arm
from harness.study.load import load_sweep
from harness.study.spec import Run, Sweep
from harness.study.views import DEFAULT, VIEWS
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from tests.harness.synthetic import make_sweep, write_runs

SEEDS = 5
Array = NDArray[Any]
Curve = Callable[[str, int, Array], Array]


@pytest.fixture(autouse=True)
def _small_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 30)


def sweep_of(arms: Mapping[str, dict[str, Any]], iterations: int = 40, **changes: Any) -> Sweep:
    """A sweep with these settings by arm; the first arm is the reference."""
    base: dict[str, Any] = {"iterations": iterations, "window": {"interval": 5}}
    base["rewards"] = {"train": {"composition": 1.0}, "held_out": ("strict",)}
    runs = []
    for seed in range(SEEDS):
        for name, settings in arms.items():
            merged = {
                key: {**base.get(key, {}), **value} if isinstance(value, dict) else value
                for key, value in {**base, **settings}.items()
            }
            config = RunConfig.model_validate({**merged, "seed": seed})
            runs.append(Run(name, seed, config, config_hash(config)))
    return replace(
        make_sweep(),
        arms=tuple(Arm(name, name, settings) for name, settings in arms.items()),
        runs=tuple(runs),
        seeds=tuple(range(SEEDS)),
        reference=next(iter(arms)),
        paper=None,
        paper_rows={},
        **changes,
    )


def results_of(
    sweep: Sweep,
    rewards: Mapping[str, Curve],
    every: int = 10,
    **columns: Callable[[Run, Array, Array], Any],
) -> Results:
    """Finished runs: held-out rewards by (arm, seed, iterations), columns of the metrics by (run,
    iterations, window starts)."""
    metrics: list[pd.DataFrame] = []
    evals: list[pd.DataFrame] = []
    runs: list[dict[str, Any]] = []
    for run in sweep.runs:
        m = np.arange(run.config.iterations)
        window = run.config.make_window()
        starts = np.array([window.start_at(int(k)) for k in m])
        who = {"arm": run.arm, "seed": run.seed}
        line: dict[str, Any] = {
            "grad_norm": 0.01,
            "evaluations_computed": 100.0,
            "backward_computed": 20.0,
            "seconds_rollout": 0.5,
            "seconds_total": 1.0,
        }
        line |= {name: make(run, m, starts) for name, make in columns.items()}
        metrics.append(pd.DataFrame({**who, "iteration": m, "window_start": starts, **line}))
        at = np.arange(0, run.config.iterations + 1, every)
        values = {f"reward_{n}_mean": c(run.arm, run.seed, at) for n, c in rewards.items()}
        evals.append(pd.DataFrame({**who, "iteration": at, **values, "seconds_total": 9.0}))
        sums = {c: metrics[-1][c].sum() for c in ("evaluations_computed", "backward_computed")}
        runs.append(
            {
                **who,
                "hash": run.hash,
                "state": "finished",
                "iterations": len(m),
                "nfe_rollout": 25.0,
                "nfe_train": 4.0,
                **sums,
                **{f"before_{n}": evals[-1][f"reward_{n}_mean"].iloc[0] for n in rewards},
                **{f"after_{n}": evals[-1][f"reward_{n}_mean"].iloc[-1] for n in rewards},
            }
        )
    order = {arm.name: k for k, arm in enumerate(sweep.arms)}

    def whole(parts: list[pd.DataFrame]) -> pd.DataFrame:
        parts.sort(key=lambda own: (order[str(own["arm"].iloc[0])], int(own["seed"].iloc[0])))
        return pd.concat(parts, ignore_index=True)

    return Results(pd.DataFrame(runs), whole(metrics), whole(evals))


def noise(arm: str, seed: int, size: int, sd: float) -> Array:
    return sd * np.random.default_rng([seed, sum(arm.encode())]).standard_normal(size)


def flat(arm: str, seed: int, at: Array) -> Array:
    return 0.5 + noise(arm, seed, len(at), 0.01)


def shown(view: View | None) -> tuple[str, dict[str, dict[str, str]]]:
    """The sentences, and the rows of the first table by the arm's name."""
    assert view is not None
    table = view.tables[0]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    return " ".join(view.sentences), rows


# ---- equal budgets ---------------------------------------------------------------------------


def test_a_run_is_read_between_its_evaluations_as_numpy_reads_it() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(40):
        x = np.concatenate([[0.0], np.cumsum(rng.uniform(1, 9, size=6))])
        rows.append(pd.DataFrame({"arm": "a", "seed": seed, "x": x, "y": rng.normal(size=7)}))
    spent = pd.concat(rows, ignore_index=True)
    for amount in (0.0, 3.3, float(rows[0]["x"].iloc[2]), 17.0, 35.0):
        read = interpolated(spent, "x", amount, ["y"]).set_index("seed")["y"]
        for seed, own in enumerate(rows):
            if own["x"].max() < amount:
                assert seed not in read.index  # never extrapolated
            else:
                assert read[seed] == pytest.approx(np.interp(amount, own["x"], own["y"]))


def test_what_is_not_finite_is_not_bridged_and_harms_no_neighbour() -> None:
    spent = pd.DataFrame(
        {"arm": "a", "seed": 0, "x": [0.0, 1.0, 2.0, 3.0], "y": [1.0, 2.0, math.nan, 4.0]}
    )
    read = {x: interpolated(spent, "x", x, ["y"])["y"].iloc[0] for x in (1.0, 1.5, 2.5, 3.0)}
    assert read[1.0] == 2.0
    assert read[3.0] == 4.0
    assert math.isnan(read[1.5])
    assert math.isnan(read[2.5])


def rising(slopes: Mapping[str, float]) -> Curve:
    return lambda arm, seed, at: 0.4 + slopes[arm] * at + 1e-4 * seed * at * (arm == "cheap")


def dear_and_cheap() -> tuple[Sweep, Results]:
    """Two arms that learn alike, iteration by iteration, of which one costs half as much."""
    sweep = sweep_of({"dear": {}, "cheap": {}})
    cost = {"dear": 200.0, "cheap": 100.0}
    results = results_of(
        sweep,
        {"composition": rising({"dear": 0.01, "cheap": 0.01}), "strict": flat},
        evaluations_computed=lambda run, m, at: cost[run.arm],
        seconds_total=lambda run, m, at: cost[run.arm] / 50,
    )
    return sweep, results


def test_at_equal_evaluations_the_cheap_arm_has_done_more_iterations() -> None:
    sweep, results = dear_and_cheap()
    view = budget(analyse(sweep, results), results, None)
    said, rows = shown(view)
    # 40 iterations of the cheap arm are 4000 evaluations, or 20 iterations of the dear one.
    assert "at 40 iterations" in said
    assert "at 4 k evaluations cheap is better than dear by 0.208 [" in said
    difference = [0.4 + 1e-4 * s * 40 - 0.2 for s in range(SEEDS)]
    low = f"{mean_interval([d + 0 for d in difference]).low:.3f}"
    assert rows["cheap"]["at 4 k evaluations"].startswith(f"+0.208 [+{low}, ")
    assert rows["cheap"]["at 4 k evaluations"].endswith("] better")
    assert rows["cheap"]["at 80.0 s"].endswith("] better")
    table = view.tables[0] if view else None
    assert table
    assert [row[3] for row in table.rows] == ["20.0", "40.0"]


def trained_by(results: Results, copied: Callable[[str, int], bool]) -> Results:
    """The results where another study trained some of the runs."""
    runs = results.runs
    keys = zip(runs["arm"], runs["seed"], strict=True)
    runs = runs.assign(trained_by=["first" if copied(arm, s) else "own" for arm, s in keys])
    return replace(results, runs=runs)


@pytest.mark.parametrize(("copies", "pairs"), [(0, 5), (2, 3), (4, 0)])
def test_seconds_of_runs_that_two_studies_trained_are_not_read_together(
    copies: int, pairs: int
) -> None:
    """Evaluations are; where fewer than 3 pairs are left nothing is known of their seconds."""
    sweep, results = dear_and_cheap()
    results = trained_by(results, lambda arm, seed: arm == "cheap" and seed >= SEEDS - copies)
    analysis = analyse(sweep, results)
    _, rows = shown(budget(analysis, results, None))
    assert rows["cheap"]["at 4 k evaluations"].endswith("] better")
    at_seconds = rows["cheap"]["at 80.0 s"]
    if pairs:
        difference = [0.4 + 1e-4 * s * 40 - 0.2 for s in range(pairs)]
        assert at_seconds.startswith(f"+{np.mean(difference):.3f} [")
    else:
        assert "better" not in at_seconds
    equal = at_equal_cost(analysis, results)
    assert equal["evaluations"]["cheap"].verdict == "better"
    assert ("seconds" in equal and equal["seconds"]["cheap"].verdict == "better") == bool(pairs)


def test_equal_evaluations_per_iteration_are_said_and_not_shown() -> None:
    sweep = sweep_of({"a": {}, "b": {}})
    results = results_of(sweep, {"composition": flat, "strict": flat})
    view = budget(analyse(sweep, results), results, None)
    said, rows = shown(view)
    assert "All runs make the same number of evaluations in each iteration" in said
    assert "b is undecided compared with a" in said
    assert not any("evaluations" in column for column in rows["b"])
    assert view is not None
    assert "reads a curve that flattens too low" in view.tables[0].note


def test_a_study_of_one_arm_has_no_budgets_to_compare() -> None:
    sweep = sweep_of({"a": {}})
    results = results_of(sweep, {"composition": flat, "strict": flat})
    assert budget(analyse(sweep, results), results, None) is None


# ---- position and training -------------------------------------------------------------------

SLOPES = {"slides": 0.002, "stays": -0.003, "drawn": 0.004}
PLACES = 1 / (1 + np.arange(22))


def measured(seed: int, arm: str, sd: float = 0.004) -> pd.DataFrame:
    rng = np.random.default_rng([seed, sum(arm.encode())])
    m = 5 * np.arange(12)
    place = {"slides": m // 5, "stays": 0 * m, "drawn": rng.integers(22, size=12)}[arm]
    slope = SLOPES[arm] + 2e-4 * rng.standard_normal()
    y = PLACES[place] + slope * m + sd * rng.standard_normal(12)
    return pd.DataFrame(
        {"arm": arm, "seed": seed, "iteration": m, "window_start": place, "alike": 0, "y": y}
    )


def lines_of(*arms: str) -> pd.DataFrame:
    return pd.concat([measured(seed, arm) for arm in arms for seed in range(8)])


def test_training_is_told_from_the_position_where_arms_meet_at_other_times() -> None:
    found = training_parts(lines_of(*SLOPES), "y")
    for arm, slope in SLOPES.items():
        interval = mean_interval(list(found[arm].values()))
        assert interval.low < slope * 55 < interval.high
        assert interval.high - interval.low < 0.05


def test_a_position_that_follows_from_the_iteration_leaves_training_unknown() -> None:
    assert set(training_parts(lines_of("slides"), "y")) == set()
    assert set(training_parts(lines_of("slides", "stays"), "y")) == {"stays"}
    other_sampler = lines_of("drawn").assign(alike=1)
    both = pd.concat([lines_of("slides"), other_sampler])
    assert set(training_parts(both, "y")) == {"drawn"}
    # Another shift interval: a line through both paths explains all.
    other = lines_of("slides").assign(arm="b", iteration=3 * lines_of("slides")["window_start"])
    assert training_parts(pd.concat([lines_of("slides"), other]), "y") == {}


def test_of_a_window_that_stays_the_interval_is_that_of_the_seeds_own_slopes() -> None:
    lines = lines_of("stays")
    by_hand = [
        np.polyfit(own["iteration"], own["y"], 1)[0] * 55 for _, own in lines.groupby("seed")
    ]
    # One F for all seeds: an offset of a seed's own would be its own slope's.
    centred = lines.assign(y=lines["y"] - lines.groupby("seed")["y"].transform("mean"))
    found = mean_interval(list(training_parts(centred, "y")["stays"].values()))
    expected = mean_interval(by_hand)
    assert found.mean == pytest.approx(expected.mean, rel=1e-6)
    assert found.low == pytest.approx(expected.low, rel=0.02)
    assert found.high == pytest.approx(expected.high, rel=0.02)


def drifting(slope: float, sd: float = 0.01) -> Callable[[Run, Array, Array], Array]:
    """A KL that falls with the position and grows by a factor, where the window has moved."""

    def values(run: Run, m: Array, starts: Array) -> Array:
        rng = np.random.default_rng([run.seed, sum(run.arm.encode())])
        grown = (slope + 1e-4 * rng.standard_normal()) * m + sd * rng.standard_normal(len(m))
        return np.where(m % 5 == 0, PLACES[starts] * np.exp(grown), math.nan)

    return values


ARMS: dict[str, dict[str, Any]] = {
    "slides": {},
    "stays": {"window": {"strategy": "frozen"}},
    "drawn": {"window": {"strategy": "random"}},
}


def limits(cell: str) -> tuple[float, float, float]:
    """The numbers of `mean [low, high]`."""
    mean, low, high = (float(x) for x in re.findall(r"[−+]?[0-9.]+", cell.replace("−", "-")))
    return mean, low, high


def test_the_drift_of_training_and_that_of_a_move_stand_apart() -> None:
    sweep = sweep_of(ARMS)
    rewards = {"composition": flat, "strict": flat}
    results = results_of(sweep, rewards, drift_step_kl=drifting(0.02), drift_image_kl=drifting(0.0))
    view = drift(analyse(sweep, results), results, None)
    assert view is not None
    images, steps = view.sentences
    # The question is about images: they come first, and nothing was planted there.
    assert images.startswith("Through training, KL of the images between SDE and ODE, at equal ")
    assert "is not shown to have changed in slides (times 1.0" in images or "times 0.9" in images
    grew = re.search(r"grew in slides \(times (\d\.\d+) \[", steps)
    assert grew is not None
    assert float(grew[1]) == pytest.approx(math.exp(0.02 * 35), rel=0.03)
    assert "if training does the same at every position" in steps
    assert re.search(r"a move of the window by itself takes it times 0\.74\d? \[", steps)
    assert re.fullmatch(
        r"What training did to the distance between SDE and ODE, at equal position of the window: "
        r"KL of the images is not shown to have changed in any arm \(times (0\.9|1\.0)\d to "
        r"(0\.9|1\.0)\d, intervals from 0\.\d\d to 1\.\d\d\), and a move of the window by itself "
        r"takes it times 0\.7\d \[0\.7\d, 0\.\d\d\] in slides; KL of a step grew in slides, stays "
        r"and drawn \(times \d\.\d\d to \d\.\d\d, intervals from 1\.\d\d to 2\.\d\d\), and a move "
        r"of the window by itself takes it times 0\.74 \[0\.7\d, 0\.7\d\] in slides\.",
        view.brief,
    )
    rows = {
        row[0]: dict(zip(view.tables[1].columns, row, strict=True)) for row in view.tables[1].rows
    }
    assert rows["stays"]["window at step"] == "0"
    assert rows["slides"]["window at step"] == "0 to 7"
    for arm in ARMS:
        # The factor over the 35 iterations between the first measurement and the last.
        _, low, high = limits(rows[arm]["by training, at equal position, times"])
        assert low < math.exp(0.02 * 35) < high
    # 1/8 over 7 moves.
    _, low, high = limits(rows["slides"]["by a move, times"])
    assert low < (1 / 8) ** (1 / 7) < high
    assert rows["stays"]["by a move, times"] == "–"
    assert rows["drawn"]["by a move, times"] == "–"


def test_what_is_said_of_the_drift_holds_for_all_arms_and_kinds_together() -> None:
    sweep = sweep_of(ARMS)
    rewards = {"composition": flat, "strict": flat}
    cells = {}
    for kinds in (("drift_image_kl",), ("drift_image_kl", "drift_step_kl")):
        given: dict[str, Any] = {kind: drifting(0.02, 0.2) for kind in kinds}
        results = results_of(sweep, rewards, **given)
        _, rows = shown(drift(analyse(sweep, results), results, None))
        cells[len(kinds)] = limits(rows["stays"]["by training, at equal position, times"])
    # Three arms and the moves of one: 4 intervals of each kind.
    one, both = (math.log(high / low) for _, low, high in cells.values())
    t = [stats.t.isf(0.025 / family, SEEDS - 1) for family in (4, 8)]
    assert both / one == pytest.approx(t[1] / t[0], rel=0.02)


def test_a_sliding_window_alone_does_not_say_what_training_did() -> None:
    sweep = sweep_of({"slides": {}, "other": {"window": {"size": 2}}})
    rewards = {"composition": flat, "strict": flat}
    results = results_of(sweep, rewards, drift_step_kl=drifting(0.003))
    view = drift(analyse(sweep, results), results, None)
    said, rows = shown(view)
    assert view is not None
    assert "cannot be separated" in said
    assert view.in_one_line == said
    assert rows["slides"]["by training, at equal position, times"] == "–"
    # exp(0.003 * 35) / 8
    assert rows["slides"]["last over first"].startswith("0.140 [")


def test_without_a_measurement_of_the_drift_there_is_no_view() -> None:
    sweep = sweep_of(ARMS)
    results = results_of(sweep, {"composition": flat, "strict": flat})
    assert drift(analyse(sweep, results), results, None) is None


# ---- turning points --------------------------------------------------------------------------


def test_smoothing_is_a_convolution_with_its_ends_kept_whole() -> None:
    curves = np.random.default_rng(1).normal(size=(3, 9))
    for curve, found in zip(curves, smoothed(curves), strict=True):
        weights = np.convolve(np.ones(9), [0.25, 0.5, 0.25], "same")
        expected = np.convolve(curve, [0.25, 0.5, 0.25], "same") / weights
        assert found == pytest.approx(expected)


def bent(arm: str, seed: int, at: Array) -> Array:
    """Rises to iteration 60, then falls by 0.08 until 120."""
    found: Array = 0.5 - 0.08 * np.abs(at - 60) / 60 + noise(arm, seed, len(at), 0.005)
    return found


def growing(arm: str, seed: int, at: Array) -> Array:
    found: Array = 0.4 + 0.002 * at + noise(f"{arm}2", seed, len(at), 0.005)
    return found


def test_a_planted_turn_is_found_where_it_is() -> None:
    sweep = sweep_of({"a": {}}, iterations=120)
    results = results_of(sweep, {"composition": growing, "strict": bent})
    (found,) = turns(analyse(sweep, results), results)
    assert found.verdict == "turned"
    assert all(50 <= m <= 70 for m in found.turning)
    assert found.loss.low < -0.08 < found.loss.high
    assert found.trained["composition"].low < 0.12 < found.trained["composition"].high
    view = turn(analyse(sweep, results), results, None)
    said, _ = shown(view)
    assert view is not None
    assert re.fullmatch(
        r"1 of 1 held-out curves turned: strict with a "
        r"\(−0\.0\d+ \[.*\] since iteration [567]0\)\.",
        view.brief,
    )
    assert "Turned, of 1 held-out curves: strict with a −0.0" in said
    assert "(meanwhile composition +0.1" in said


def test_what_only_falls_or_only_rises_has_not_turned() -> None:
    sweep = sweep_of({"a": {}}, iterations=120)
    for curve, verdict in (
        (growing, "best at the end"),
        (lambda *given: -growing(*given), "fell from the start"),
    ):
        results = results_of(sweep, {"composition": growing, "strict": curve})
        (found,) = turns(analyse(sweep, results), results)
        assert found.verdict == verdict


def test_a_page_of_flat_curves_seldom_shows_a_turn_in_any() -> None:
    """Pages of six curves, as the study of reward hacking has."""
    pages, turned, naive = 200, 0, 0
    for page in range(pages):
        rng = np.random.default_rng(page)
        found = []
        for _ in range(6):
            curves = {"strict": 0.5 + 0.01 * rng.standard_normal((SEEDS, 10))}
            found.append(_turn("a", "strict", 18 * np.arange(10), curves, family=6))
            own = curves["strict"]
            naive += mean_interval(list(own[:, -1] - own.max(1))).high < 0
        turned += any(t.turned for t in found)
    # 2.5 % if the turning points of the seeds were independent; one curve at a time it was 27 %.
    assert turned <= 0.06 * pages
    # The seed's own best value is above its end nearly always.
    assert naive > 0.5 * 6 * pages


def test_the_curves_of_a_page_share_the_error() -> None:
    found = {}
    for arms in (1, 6):
        sweep = sweep_of({f"arm{k}": {} for k in range(arms)}, iterations=120)
        results = results_of(sweep, {"composition": growing, "strict": flat})
        found[arms] = turns(analyse(sweep, results), results)[0]
    assert found[6].loss.level == pytest.approx(1 - 0.05 / 6)
    assert found[1].loss.mean == found[6].loss.mean
    for family, one in found.items():
        expected = detectable_difference(one.loss.sd, SEEDS, family)
        assert one.detectable == pytest.approx(expected)
    said, _ = shown(turn(analyse(sweep, results), results, None))
    # One sentence, with the smallest detectable loss: another page has room for no more.
    assert re.fullmatch(
        r"No held-out reward is shown to have turned in 120 iterations, in any arm; the "
        r"smallest detectable loss is 0\.\d+ to 0\.\d+ \(depending on the curve\)\.",
        said,
    )


def test_one_seed_that_turned_later_does_not_make_a_fall_a_turn() -> None:
    """All fall from the start; without the first seed the mean of the others is highest later."""

    def falling(arm: str, seed: int, at: Array) -> Array:
        found: Array = 0.5 - 0.002 * at + 0.001 * seed
        found += -0.6 * ((at == 50) | (at == 70)) if seed == 0 else 0.4 * (at == 60)
        return found

    sweep = sweep_of({"a": {}}, iterations=120)
    results = results_of(sweep, {"composition": growing, "strict": falling})
    (found,) = turns(analyse(sweep, results), results)
    assert found.turning == (60, 0, 0, 0, 0)
    assert found.turned
    assert found.verdict == "fell from the start"


def test_what_an_arm_trains_on_is_not_held_out_there() -> None:
    two = {"rewards": {"train": {"composition": 1.0, "strict": 1.0}, "held_out": ("palette",)}}
    sweep = sweep_of({"a": {"rewards": {"held_out": ("strict", "palette")}}, "b": two}, 120)
    results = results_of(sweep, {"composition": growing, "strict": bent, "palette": flat})
    found = turns(analyse(sweep, results), results)
    assert [(t.arm, t.reward) for t in found] == [
        ("a", "strict"),
        ("a", "palette"),
        ("b", "palette"),
    ]
    view = turn(analyse(sweep, results), results, None)
    assert view is not None
    assert re.match(r"1 of 3 held-out curves turned: strict with a \([^)]*\)\.$", view.brief)
    assert set(found[2].trained) == {"composition", "strict"}


# ---- speed-up --------------------------------------------------------------------------------

FAST = {
    "whole": {},
    "fast": {"sampler": {"tail_ratio": 0.4, "order": 2}, "window": {"strategy": "frozen"}},
}


def test_the_formula_is_the_papers() -> None:
    sweep = sweep_of(FAST)
    whole, fast = (sweep.runs[k].config for k in (0, 1))
    assert formula(whole) == 1
    assert formula(fast) == pytest.approx(25 / (4 + 21 * 0.4))


@pytest.mark.parametrize("watched", [False, True])
def test_the_measured_speed_up_is_that_of_the_rollouts_alone(watched: bool) -> None:
    sweep = sweep_of(FAST)
    rollout = {"whole": 1.0, "fast": 0.5}
    busy = {"whole": 3.0, "fast": 1.0}
    extra: dict[str, Any] = {}
    if watched:
        extra["seconds_health"] = lambda run, m, at: 7.0
    results = results_of(
        sweep,
        {"composition": flat, "strict": flat},
        seconds_rollout=lambda run, m, at: (
            rollout[run.arm] * (1 + 0.01 * run.seed + 1e-4 * run.seed * (run.arm == "fast"))
        ),
        seconds_total=lambda run, m, at: rollout[run.arm] + 0.5 + 7.0 * watched,
        evaluations_computed=lambda run, m, at: 20.0 + 80 * rollout[run.arm],
        **extra,
    )
    said, rows = shown(speedup(analyse(sweep, results), results, None))
    assert rows["fast"]["measured"].startswith("2.00")
    assert rows["fast"]["evaluations made"] == "2.00"
    assert rows["fast"]["formula"] == "2.02"
    assert "faster in 1: fast (times 2.00 [2.00, 2.00], by the evaluations made 2.00)" in said
    assert "the formula T / (w + (T - w) r) in 1 of 1" in said
    assert "steps that a group's images share" in said
    # A machine that is busy stretches the clock; a core's time it does not.
    clock = {name: results.metrics[name] for name in ("seconds_total", "seconds_rollout")}
    stretch = results.metrics["arm"].map(busy)
    cpu = clock["seconds_total"] - 7.0 * watched
    results.metrics = results.metrics.assign(
        seconds_cpu=cpu,
        seconds_rollout=clock["seconds_rollout"] * stretch,
        seconds_total=cpu * stretch + 7.0 * watched,
    )
    results.machines = [Machine("AMD EPYC, Rome, 1 thread per run, Python 3.11", one_core=True)]
    analysis = analyse(sweep, results)
    assert analysis.core_time
    again = shown(speedup(analysis, results, None))[1]
    assert again["fast"]["measured"].startswith("2.00")


def test_every_arm_is_as_fast_as_its_own_reference_says() -> None:
    """Two groups, of which the second is twice as dear as the first whatever its tail."""
    arms: dict[str, dict[str, Any]] = {}
    for strategy in ("constant", "frozen"):
        for tail in (1.0, 0.6, 0.4):
            arms[f"{strategy} {tail}"] = {
                "window": {"strategy": strategy},
                "sampler": {"tail_ratio": tail, "order": 2},
            }
    within = {name: f"{name.split()[0]} 1.0" for name in arms}
    sweep = sweep_of(arms, within=within, within_label="all steps of the tail")
    cost = {n: (2.0 if "frozen" in n else 1.0) * float(n.split()[1]) for n in arms}

    def seconds(run: Run, m: Array, starts: Array) -> Array:
        wobble = np.random.default_rng([run.seed, sum(run.arm.encode())]).standard_normal()
        # Few dear iterations: a sum has them, a median does not.
        return cost[run.arm] * (1 + 0.02 * wobble) * np.where(m % 10 == 9, 9.0, 1.0)

    results = results_of(
        sweep,
        {"composition": flat, "strict": flat},
        seconds_rollout=seconds,
        seconds_total=seconds,
        evaluations_computed=lambda run, m, at: 20.0 + 100 * cost[run.arm],
    )
    results.runs["nfe_rollout"] = [20.0 * cost[arm] for arm in results.runs["arm"]]
    analysis = analyse(sweep, results)
    found = {s.arm: s for s in speed_ups(analysis, results)}
    for name, s in found.items():
        tail = float(name.split()[1])
        assert s.counted == pytest.approx(1 / tail)
        assert s.computed == pytest.approx(1 / tail)
        assert s.formula == pytest.approx(25 / (4 + 21 * tail))
        # 38 iterations after warm-up, of which 4 cost nine times as much.
        assert s.seconds == pytest.approx(cost[name] * (34 + 36) / 38, rel=0.05)
        if s.measured:
            assert s.measured.low < 1 / tail < s.measured.high
            assert s.measured.level == pytest.approx(1 - 0.05 / 4)
    assert [n for n, s in found.items() if s.measured is None] == ["constant 1.0", "frozen 1.0"]
    view = speedup(analysis, results, None)
    said, _ = shown(view)
    assert view is not None
    assert re.fullmatch(
        r"Rollouts that thin out the steps after the window are shown to be faster in 4 of 4 arms, "
        r"by their means 1\.[67]\d to 2\.[45]\d times as fast, with 1\.67 to 2\.50 times fewer "
        r"evaluations\.",
        view.brief,
    )
    assert "Of 4 arms that thin out" in said
    assert "faster in 4: constant 0.6 (times 1.6" in said


def test_rollouts_that_two_studies_timed_are_not_compared() -> None:
    sweep = sweep_of({**FAST, "faster": {**FAST["fast"], "window": {"interval": 7}}})
    pace = {"whole": 1.0, "fast": 0.5, "faster": 0.25}
    results = results_of(
        sweep,
        {"composition": flat, "strict": flat},
        seconds_rollout=lambda run, m, at: pace[run.arm] * (1 + 0.01 * run.seed),
    )

    def found(copied: Callable[[str, int], bool]) -> dict[str, Any]:
        given = trained_by(results, copied)
        return {s.arm: s.measured for s in speed_ups(analyse(sweep, given), given)}

    assert {arm: m.n for arm, m in found(lambda *_: False).items() if m} == {"fast": 5, "faster": 5}
    some = found(lambda arm, seed: arm == "fast" and seed < 2)
    assert (some["fast"].n, some["faster"].n) == (3, 5)
    # One arm is left of which anything is known: its interval needs to hold for no other.
    most = found(lambda arm, seed: arm == "fast" and seed < 4)
    assert not most["fast"].known
    assert most["faster"].level == pytest.approx(0.95)


def test_with_nothing_accelerated_there_is_no_speed_up() -> None:
    sweep = sweep_of({"a": {}, "b": {"window": {"interval": 7}}})
    results = results_of(sweep, {"composition": flat, "strict": flat})
    assert speedup(analyse(sweep, results), results, None) is None


# ---- stability -------------------------------------------------------------------------------


def test_collapses_growth_and_failures_are_counted() -> None:
    sweep = sweep_of({"good": {}, "bad": {}})

    def curve(arm: str, seed: int, at: Array) -> Array:
        found = 0.5 + 0.002 * at + 0.001 * seed
        if arm == "bad" and seed < 2:
            found = np.where(at > 20, 0.3, found)
        if (arm, seed) == ("bad", 2):
            found = np.where(at > 30, math.nan, found)
        return found

    def norm(run: Run, m: Array, starts: Array) -> Array:
        grown = m >= 36
        return 0.01 * (1 + 0.01 * run.seed) * np.where(grown, 3.0 if run.arm == "bad" else 1.0, 1)

    results = results_of(sweep, {"composition": curve, "strict": flat}, grad_norm=norm)
    last = (results.runs["arm"] == "bad") & (results.runs["seed"] == 4)
    results.runs.loc[last, "state"] = "failed"
    for name in ("metrics", "evaluations"):
        lines = getattr(results, name)
        setattr(results, name, lines[(lines["arm"] != "bad") | (lines["seed"] != 4)])
    analysis = analyse(sweep, results)
    good, bad = judged(analysis, results)
    assert (good.halved, good.below, good.failed) == ((), (), ())
    assert bad.below == (0, 1, 2)
    assert bad.halved == (0, 1, 2)
    assert bad.failed == (4,)
    assert (good.growth.mean, bad.growth.mean) == pytest.approx((1.0, 3.0))
    assert good.fall.mean == 0.0
    assert bad.fall.mean == pytest.approx((2 * (0.54 - 0.3) + 0.001) / 4)
    said, rows = shown(stability(analysis, results, None))
    assert (
        "Of 10 runs, 1 failed and 3 lost more than half of their best gain in composition, of "
        "which 3 ended below where they began: bad (of 5: 1 failed; 3 lost it, 3 of them below its "
        "beginning); of bad the surviving seeds alone are compared." in said
    )
    assert rows["bad"]["runs"] == "5"


def test_an_arm_whose_every_run_failed_is_shown_and_counted() -> None:
    sweep = sweep_of({"good": {}, "dead": {}, "waiting": {}})
    results = results_of(sweep, {"composition": growing, "strict": flat})
    states = {"good": "finished", "dead": "failed", "waiting": "waiting"}
    results.runs["state"] = [states[arm] for arm in results.runs["arm"]]
    for name in ("metrics", "evaluations"):
        lines = getattr(results, name)
        setattr(results, name, lines[lines["arm"] == "good"])
    analysis = analyse(sweep, results)
    _, dead = judged(analysis, results)
    assert (dead.arm, dead.seeds, dead.failed) == ("dead", 0, tuple(range(SEEDS)))
    assert not dead.fall.known
    said, rows = shown(stability(analysis, results, None))
    assert said.startswith("Of 10 runs, 5 failed and 0 lost")
    assert rows["dead"]["failed"] == "5"
    assert rows["dead"]["end minus best of the others"] == "–"
    assert "waiting" not in rows


@pytest.mark.parametrize(
    ("values", "halved", "below"),
    [
        ([0.5, 0.6, 0.7, 0.61, 0.61], False, False),
        ([0.5, 0.6, 0.7, 0.59, 0.59], True, False),
        ([0.5, 0.6, 0.7, 0.49, 0.49], True, True),
        ([0.5, 0.4, 0.3, 0.4, 0.49], True, True),
        ([0.5, 0.5, 0.5, 0.5, 0.5], False, False),
    ],
)
def test_what_counts_as_lost_follows_from_the_runs_own_curve(
    values: list[float], halved: bool, below: bool
) -> None:
    sweep = sweep_of({"a": {}})
    results = results_of(sweep, {"composition": lambda *_: np.array(values), "strict": flat})
    (found,) = judged(analyse(sweep, results), results)
    every = tuple(range(SEEDS))
    assert (found.halved, found.below) == (every if halved else (), every if below else ())


def test_a_planted_loss_is_told_and_chance_is_not() -> None:
    sweep = sweep_of({"rises": {}, "turns": {}}, iterations=120)

    def curve(arm: str, seed: int, at: Array) -> Array:
        return bent(arm, seed, at) if arm == "turns" else growing(arm, seed, at)

    results = results_of(sweep, {"composition": curve, "strict": flat})
    analysis = analyse(sweep, results)
    rises, turns_ = judged(analysis, results)
    assert turns_.since_best.low < -0.08 < turns_.since_best.high < 0
    assert turns_.since_best.level == pytest.approx(1 - 0.05 / 2)
    assert rises.since_best.sign == 0
    said, _ = shown(stability(analysis, results, None))
    assert "it was lost again in turns (−0.0" in said


def test_chance_alone_is_no_loss() -> None:
    sweep = sweep_of({f"arm{k}": {} for k in range(20)}, iterations=120)
    results = results_of(sweep, {"composition": flat, "strict": flat})
    found = judged(analyse(sweep, results), results)
    assert len(found) == 20
    assert sum(s.since_best.sign < 0 for s in found) <= 1
    # The largest fall of a level curve is never zero, and no sign of anything.
    assert all(s.fall.low > 0 for s in found)


# ---- the sweep file and the report -----------------------------------------------------------


def test_every_view_of_the_project_can_be_named_and_no_other(tmp_path: Path) -> None:
    named = [name for name in VIEWS if name not in DEFAULT]
    file = tmp_path / "a.yaml"
    text = "name: a\nquestion: Q?\ngrid: {window.interval: [1, 2]}\nseeds: 3\nviews: "
    file.write_text(text + f"[{', '.join(named)}]\n")
    assert load_sweep(file).views == tuple(named)
    for views, said in (
        ("[drift, trun]", r"a.yaml:5: views.1: no such view: trun; did you mean turn\?"),
        ("[turn, turn]", "views.1: the view turn is named twice"),
        ("[budget]", "views.0: the view budget is on every page"),
        ("turn", "views: expected a list of values"),
    ):
        file.write_text(text + views + "\n")
        with pytest.raises(ConfigError, match=said):
            load_sweep(file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(small(), folder)
    return folder


def small(**changes: Any) -> Sweep:
    return make_sweep(intervals=(9, 15), seeds=3, iterations=24, **changes)


def test_the_page_and_the_tables_have_the_views_that_the_file_names(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # drawing takes seconds
    page = write_report(small(views=("turn", "stability")), runs, tmp_path)
    text = page.read_text()
    titles = ["At equal budgets", "Where held-out rewards turn", "How stable training is"]
    assert [text.index(f"<summary>{t}</summary>") for t in titles] == sorted(
        text.index(f"<summary>{t}</summary>") for t in titles
    )
    markdown = (page.parent / "table.md").read_text()
    assert all(f"\n## {title}\n" in markdown for title in titles)
    assert "\n### Held-out rewards from their turning point to the end\n" in markdown
    latex = (page.parent / "table.tex").read_text()
    assert latex.count(r"\begin{table}") == markdown.count("\n|---|")
    for name in ("budget", "turn", "stability"):
        assert (page.parent / "figures" / f"{name}.png").exists()


def test_other_views_make_another_report_and_leave_no_picture_behind(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])

    def written(views: tuple[str, ...]) -> tuple[set[str], float]:
        page = write_report(small(views=views), runs, tmp_path)
        pictures = {p.stem for p in (page.parent / "figures").glob("*.pdf")}
        return pictures, page.stat().st_mtime_ns

    first, when = written(("turn",))
    assert {"budget", "turn"} <= first
    assert written(("turn",)) == (first, when)
    second, later = written(("stability",))
    assert second == first - {"turn"} | {"stability"}
    assert later > when


# ---- interaction -----------------------------------------------------------------------------


def test_effects_are_compared_with_the_first_groups_effects() -> None:
    """Planted: the second setting gives 0.05 in both groups, the third 0.1 in the second alone."""
    effects = {"a1": 0.0, "a2": 0.05, "a3": 0.0, "b1": 0.3, "b2": 0.35, "b3": 0.4}
    arms = {
        name: {"window": {"size": 2 if name[0] == "a" else 4, "interval": int(name[1])}}
        for name in effects
    }
    within = {name: f"{name[0]}1" for name in arms}
    sweep = sweep_of(arms, within=within, within_label="the first")
    flat_settings = {n: {f"window.{k}": v for k, v in s["window"].items()} for n, s in arms.items()}
    sweep = replace(sweep, arms=tuple(Arm(n, n, s) for n, s in flat_settings.items()))

    def reward(arm: str, seed: int, at: Array) -> Array:
        return 0.3 + effects[arm] + 0.02 * np.sin(seed) + noise(arm, seed, len(at), 0.005)

    analysis = analyse(sweep, results_of(sweep, {"composition": reward, "strict": flat}))
    assert [c.arm for c in analysis.compared] == ["a2", "a3", "b2", "b3"]
    found = interactions(analysis)
    assert {arm: c.reference for arm, c in found.items()} == {"b2": "a2", "b3": "a3"}
    value = {name: analysis.by_name(name).after for name in arms}
    by_hand = [
        (value["b3"][s] - value["b1"][s]) - (value["a3"][s] - value["a1"][s]) for s in range(SEEDS)
    ]
    expected = mean_interval(by_hand, 1 - 0.05 / 2)
    assert found["b3"].simultaneous.mean == pytest.approx(expected.mean)
    assert found["b3"].simultaneous.low == pytest.approx(expected.low)
    assert (found["b2"].verdict, found["b3"].verdict) == ("undecided", "better")
    view = interaction(analysis, results_of(sweep, {"composition": reward, "strict": flat}), None)
    assert view is not None
    assert view.sentences[0].startswith(
        "The effect differs from the one in the group of a1 in b3 (+0."
    )


def test_without_groups_no_effects_are_compared() -> None:
    sweep = make_sweep()
    results = results_of(sweep, {"composition": flat, "strict": flat, "palette": flat})
    assert interaction(analyse(sweep, results), results, None) is None


def test_one_group_alone_has_no_other_to_differ_from() -> None:
    arms: dict[str, dict[str, Any]] = {f"a{k}": {"window": {"interval": k}} for k in (1, 2)}
    sweep = sweep_of(arms, within=dict.fromkeys(arms, "a1"), within_label="the first")
    results = results_of(sweep, {"composition": flat, "strict": flat})
    assert interaction(analyse(sweep, results), results, None) is None


# ---- names in the figures --------------------------------------------------------------------


@pytest.mark.parametrize("width", [10, 16, 20, 28])
def test_a_name_is_broken_between_settings_not_inside_one(width: int) -> None:
    name = "w = 1 · τ = 8 · s = 3 · η = 1.41 · order = 3"
    sweep = sweep_of({"a": {}, name: {}})
    analysis = analyse(sweep, results_of(sweep, {"composition": flat, "strict": flat}))
    text = arm_label(analysis, analysis.by_name(name), width)
    assert text.replace("\n", " ") == name
    assert all(line.count("=") == len(re.findall(r"\S = \S", line)) for line in text.split("\n"))
    assert max(map(len, text.split("\n"))) <= width
