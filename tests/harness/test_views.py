"""The views of a page, against independent computations and against effects that were planted."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness import figures
from harness.analysis import analyse
from harness.report import write_report
from harness.results import Results
from harness.spec import Arm, Run, Sweep, load_sweep
from harness.stats import mean_interval
from harness.views import DEFAULT, VIEWS, View
from harness.views.budget import budget, interpolated
from harness.views.drift import drift
from harness.views.interaction import interaction, interactions
from harness.views.position import training_parts
from harness.views.speedup import formula, speedup
from harness.views.stability import judged, stability
from harness.views.turn import smoothed, turn, turns
from mixgrpo.config import RunConfig
from mixgrpo.errors import ConfigError
from mixgrpo.identity import config_hash

from .synthetic import make_sweep, write_runs

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


def test_at_equal_evaluations_the_cheap_arm_has_done_more_iterations() -> None:
    sweep = sweep_of({"dear": {}, "cheap": {}})
    cost = {"dear": 200.0, "cheap": 100.0}
    results = results_of(
        sweep,
        {"composition": rising({"dear": 0.01, "cheap": 0.01}), "strict": flat},
        evaluations_computed=lambda run, m, at: cost[run.arm],
        seconds_total=lambda run, m, at: cost[run.arm] / 50,
    )
    view = budget(analyse(sweep, results), results, None)
    said, rows = shown(view)
    # 40 iterations of the cheap arm are 4000 evaluations, or 20 iterations of the dear one.
    assert "at 40 iterations" in said
    assert "at 4 k evaluations cheap (+0.208 [" in said
    difference = [0.4 + 1e-4 * s * 40 - 0.2 for s in range(SEEDS)]
    low = f"{mean_interval([d + 0 for d in difference]).low:.3f}"
    assert rows["cheap"]["at 4 k evaluations"].startswith(f"+0.208 [+{low}, ")
    assert rows["cheap"]["at 4 k evaluations"].endswith("] better")
    assert rows["cheap"]["at 80.0 s"].endswith("] better")
    table = view.tables[0] if view else None
    assert table
    assert [row[3] for row in table.rows] == ["20.0", "40.0"]


def test_equal_evaluations_per_iteration_are_said_and_not_shown() -> None:
    sweep = sweep_of({"a": {}, "b": {}})
    results = results_of(sweep, {"composition": flat, "strict": flat})
    view = budget(analyse(sweep, results), results, None)
    said, rows = shown(view)
    assert "All runs make the same number of evaluations in each iteration" in said
    assert "no arm" not in said
    assert "the arm is not told apart from a" in said
    assert not any("evaluations" in column for column in rows["b"])


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


def drifting(slope: float) -> Callable[[Run, Array, Array], Array]:
    """A KL that falls with the position and changes with training, where the window has moved."""

    def values(run: Run, m: Array, starts: Array) -> Array:
        rng = np.random.default_rng([run.seed, sum(run.arm.encode())])
        found = PLACES[starts] + (slope + 1e-4 * rng.standard_normal()) * m
        return np.where(m % 5 == 0, found + 1e-4 * rng.standard_normal(len(m)), math.nan)

    return values


ARMS: dict[str, dict[str, Any]] = {
    "slides": {},
    "stays": {"window": {"strategy": "frozen"}},
    "drawn": {"window": {"strategy": "random"}},
}


def test_the_drift_of_training_and_that_of_a_move_stand_apart() -> None:
    sweep = sweep_of(ARMS)
    rewards = {"composition": flat, "strict": flat}
    results = results_of(sweep, rewards, drift_step_kl=drifting(0.003))
    said, rows = shown(drift(analyse(sweep, results), results, None))
    assert said.count("it rose by 0.10") + said.count("it rose by 0.11") == 3
    assert rows["stays"]["window at step"] == "0"
    assert rows["slides"]["window at step"] == "0 to 7"
    # 1/8 - 1 over 7 moves.
    assert rows["slides"]["by a move"].startswith("−0.12")
    assert rows["stays"]["by a move"] == "–"
    assert rows["drawn"]["by a move"] == "–"


def test_a_sliding_window_alone_does_not_say_what_training_did() -> None:
    sweep = sweep_of({"slides": {}, "other": {"window": {"size": 2}}})
    rewards = {"composition": flat, "strict": flat}
    results = results_of(sweep, rewards, drift_step_kl=drifting(0.003))
    said, rows = shown(drift(analyse(sweep, results), results, None))
    assert "cannot be told apart" in said
    assert rows["slides"]["by training, at equal position"] == "–"
    assert rows["slides"]["last minus first"].startswith("−0.7")


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
    said, _ = shown(turn(analyse(sweep, results), results, None))
    assert "Turned, of 1 held-out curves: strict in a −0.0" in said
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


def test_chance_alone_seldom_looks_like_a_turn() -> None:
    sweep = sweep_of({f"arm{k}": {} for k in range(80)}, iterations=120)
    results = results_of(sweep, {"composition": growing, "strict": flat})
    analysis = analyse(sweep, results)
    found = turns(analysis, results)
    assert len(found) == 80
    # 2.5 % of each tail; the seed's own best value would be above its end in nearly all.
    assert sum(t.turned for t in found) <= 7
    own = results.evals.groupby(["arm", "seed"])["reward_strict_mean"]
    naive = (own.last() - own.max()).groupby("arm").agg(lambda v: mean_interval(list(v)).high)
    assert (naive < 0).mean() > 0.5


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
        seconds_rollout=lambda run, m, at: rollout[run.arm] * (1 + 0.01 * run.seed),
        seconds_total=lambda run, m, at: rollout[run.arm] + 0.5 + 7.0 * watched,
        evaluations_computed=lambda run, m, at: 20.0 + 80 * rollout[run.arm],
        **extra,
    )
    said, rows = shown(speedup(analyse(sweep, results), results, None))
    assert rows["fast"]["measured"].startswith("2.00")
    assert rows["fast"]["evaluations made"] == "2.00"
    assert rows["fast"]["formula"] == "2.02"
    assert "the formula T / (w + (T - w) r) says 2.02" in said
    # A machine that is busy stretches the clock; a core's time it does not.
    clock = {name: results.metrics[name] for name in ("seconds_total", "seconds_rollout")}
    stretch = results.metrics["arm"].map(busy)
    cpu = clock["seconds_total"] - 7.0 * watched
    results.metrics = results.metrics.assign(
        seconds_cpu=cpu,
        seconds_rollout=clock["seconds_rollout"] * stretch,
        seconds_total=cpu * stretch + 7.0 * watched,
    )
    results.env = ["AMD EPYC, 1 thread per run, Python 3.11"]
    analysis = analyse(sweep, results)
    assert analysis.core_time
    again = shown(speedup(analysis, results, None))[1]
    assert again["fast"]["measured"].startswith("2.00")


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
    for name in ("metrics", "evals"):
        lines = getattr(results, name)
        setattr(results, name, lines[(lines["arm"] != "bad") | (lines["seed"] != 4)])
    analysis = analyse(sweep, results)
    good, bad = judged(analysis, results)
    assert (good.collapsed, good.failed) == ((), ())
    assert bad.collapsed == (0, 1, 2)
    assert bad.failed == (4,)
    assert (good.growth.mean, bad.growth.mean) == pytest.approx((1.0, 3.0))
    assert good.worst == 0.0
    assert bad.worst == pytest.approx(0.54 + 0.001 - 0.3)
    said, rows = shown(stability(analysis, results, None))
    assert "Runs that collapsed or failed: bad 3 of 5 and 1 failed." in said
    assert rows["bad"]["collapsed"] == "3 of 4"


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
    assert [text.index(f"<h2>{t}</h2>") for t in titles] == sorted(
        text.index(f"<h2>{t}</h2>") for t in titles
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
    assert found["b3"].simultaneous == expected
    assert (found["b2"].verdict, found["b3"].verdict) == ("indistinguishable", "better")
    view = interaction(analysis, results_of(sweep, {"composition": reward, "strict": flat}), None)
    assert view is not None
    assert view.sentences[0].startswith("The effect differs from that beside a1 in b3 (+0.")


def test_without_groups_no_effects_are_compared() -> None:
    sweep = make_sweep()
    results = results_of(sweep, {"composition": flat, "strict": flat, "palette": flat})
    assert interaction(analyse(sweep, results), results, None) is None
