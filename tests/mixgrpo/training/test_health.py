"""What is said about a run's numbers, against lines just on either side of every threshold."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_ind_from_stats

from mixgrpo.settings.config import RunConfig
from mixgrpo.training.health import QUIET, Health
from tests.mixgrpo.toy import ROOT, config

Line = dict[str, Any]

CONFIG = config(
    rewards={"train": {"composition": 1.0, "clarity": 0.5}, "held_out": ["palette", "strict"]},
    objective={"clip_range": 1e-4, "updates": 2},
)


def metrics(**changed: Any) -> Line:
    """A line that gives no cause for any warning."""
    return {
        "reward_composition_mean": 0.6,
        "reward_composition_std": 0.3,
        "reward_clarity_mean": 5.0,
        "reward_clarity_std": 0.1,
        "groups": 8,
        "groups_without_variance": 0,
        "ratio_max": 3e-4,
        "clip_fraction": 0.2,
        "noise_floor": 1e-6,
        **changed,
    }


def judged(**changed: Any) -> Line:
    """An evaluation; a mean of 100 images with a std of 0.3 has a standard error of 0.03."""
    rewards = ("composition", "clarity", "palette", "strict")
    return {
        **{f"reward_{name}_mean": 0.5 for name in rewards},
        **{f"reward_{name}_std": 0.3 for name in rewards},
        "prompts": 50,
        "images": 100,
        **changed,
    }


def said(lines: list[Line], settings: RunConfig = CONFIG) -> list[str]:
    """All warnings after lines of metrics, numbered from 0."""
    health = Health(settings)
    return [
        text for i, line in enumerate(lines) for text in health.iteration({"iteration": i, **line})
    ]


def said_of(evaluations: list[Line]) -> list[str]:
    """All warnings after evaluations, one every 10 iterations."""
    health = Health(CONFIG)
    return [
        text
        for i, line in enumerate(evaluations)
        for text in health.evaluation({"iteration": 10 * i, **line})
    ]


def test_a_healthy_run_is_silent() -> None:
    assert said([metrics(gradient_cosine=0.1, drift_image_kl=1.0)] * 100) == []
    assert said_of([judged(diversity=0.3)] * 10) == []


def test_a_clip_range_below_the_noise() -> None:
    assert said([metrics(noise_floor=1e-4)]) == []
    assert said([metrics(noise_floor=1.2e-4)] * 3) == [
        "iteration 0: objective.clip_range 0.0001 lies below the numerical noise of the log-probs "
        "(1.2e-04 before any update); raise it, or compute in higher precision"
    ]


def test_an_iteration_without_gradient() -> None:
    assert said([metrics(groups_without_variance=7)]) == []
    found = said([metrics(), metrics(groups_without_variance=8), metrics()])
    assert len(found) == 1
    assert found[0].startswith("iteration 1: none of the 8 groups")
    assert "rollout.group_size" in found[0]
    # A failed reward may leave fewer groups than were asked for.
    assert len(said([metrics(groups=5, groups_without_variance=5)])) == 1


def test_a_line_of_an_older_version_has_the_configured_number_of_groups() -> None:
    line = metrics(groups_without_variance=CONFIG.rollout.prompts)
    del line["groups"]
    assert "none of the 2 groups" in said([line])[0]


def test_most_groups_without_variance() -> None:
    half = [metrics(groups_without_variance=4)] * 10
    assert said(half) == []
    found = said([*half, metrics(groups_without_variance=5)])
    assert len(found) == 1
    assert found[0].startswith("iteration 10: 41 of the 80 groups of the last 10 iterations")
    # Not before there are ten.
    assert said([metrics(groups_without_variance=7)] * 9) == []
    assert len(said([metrics(groups_without_variance=7)] * 20)) == 1


@pytest.mark.parametrize("value", [0.1, 0.7, 1.0, 0.0, -7.1, 3300.0])
def test_a_constant_reward(value: float) -> None:
    # As the trainer computes them: in float32 the std of equal numbers is not always 0.
    scores = torch.full((24, 4), value)
    line = metrics(reward_clarity_mean=float(scores.mean()), reward_clarity_std=float(scores.std()))
    assert said([line, line, metrics(), line, line]) == []
    found = said([metrics(), *[line] * 10])
    assert len(found) == 1
    assert found[0].startswith("iteration 3: the reward clarity gave every image of the last 3")
    assert f"({value:g})" in found[0]
    assert "rewards.train" in found[0]


def test_a_reward_of_little_spread_is_not_constant() -> None:
    scores = torch.full((24, 4), 0.7)
    scores[0, 0] += 1e-4
    line = metrics(reward_clarity_mean=float(scores.mean()), reward_clarity_std=float(scores.std()))
    assert said([line] * 10) == []


def test_a_clip_that_does_everything() -> None:
    clipped = metrics(clip_fraction=0.91, ratio_max=0.25)
    assert said([metrics(clip_fraction=0.9)] * 20) == []
    assert said([*[clipped] * 4, metrics(), *[clipped] * 4]) == []
    found = said([clipped] * 20)
    assert len(found) == 1
    assert found[0].startswith("iteration 4: more than 90% of the ratios")
    for part in ("0.91", "2.5e-01", "0.0001", "optimizer.lr"):
        assert part in found[0]


def test_gradients_in_conflict() -> None:
    def lines(values: list[float | None]) -> list[Line]:
        return [metrics(gradient_cosine=value) for value in values]

    assert said(lines([-0.9] * 9)) == []
    assert said(lines([-0.25, 0.25] * 10)) == []
    assert said(lines([-0.1875] * 30)) == []
    found = said(lines([0.5, -0.25, None] * 3 + [-0.25] * 30))
    assert len(found) == 1
    # Ten of those that were measured: with one 0.5 among them the mean is -0.175.
    assert found[0].startswith("iteration 17: the gradients of the window's first and last step")
    assert "-0.25" in found[0]
    assert "window.size" in found[0]
    absent = said([metrics()] * 30 + lines([-0.25] * 9))
    assert absent == []


def test_drift_of_the_sde_from_the_ode() -> None:
    def moves(*values: float) -> list[Line]:
        """A window that moves every third iteration."""
        lines: list[Line] = []
        for value in values:
            lines += [metrics(drift_image_kl=value), metrics(), metrics(drift_image_kl=None)]
        return lines

    assert said(moves(0.5, 1.0, 2.0)) == []
    found = said(moves(0.5, 1.0, 2.1, 9.0, 9.0))
    assert len(found) == 1
    assert found[0].startswith("iteration 6: the images of the SDE")
    assert "0.5 -> 2.1" in found[0]
    # Four times nearly nothing is still little.
    assert said(moves(0.01, 0.49)) == said(moves(-0.01, 0.49)) == []
    assert len(said(moves(-0.01, 0.51))) == 1


def test_a_window_kept_whole_where_the_released_one_shrinks() -> None:
    settings = config(sampler={"steps": 8}, window={"size": 3, "interval": 2, "at_end": "released"})
    found = said([metrics(reward_brightness_mean=0.5, reward_brightness_std=0.1)] * 20, settings)
    # First steps 0, 1, 2, 3 are whole; 4 is not.
    assert len(found) == 1
    assert found[0].startswith("iteration 8: the released code's window would be 2 steps long")
    assert "at steps 3 to 5" in found[0]


def test_reward_hacking_names_both_rewards() -> None:
    # The difference of two means with standard error 0.03 has one of 0.0424; twice that is 0.0849.
    up, down = 0.5 + 0.0850, 0.5 - 0.0850
    almost_up, almost_down = 0.5 + 0.0848, 0.5 - 0.0848
    found = said_of(
        [judged(), judged(reward_composition_mean=up, reward_palette_mean=down), judged()]
    )
    assert len(found) == 1
    assert found[0].startswith("iteration 10: reward hacking: composition (0.500 -> 0.585)")
    assert "palette (0.500 -> 0.415)" in found[0]
    assert "objective.kl_weight" in found[0]
    for rise, fall in ((almost_up, down), (up, almost_down), (down, up), (up, up)):
        line = judged(reward_composition_mean=rise, reward_palette_mean=fall)
        assert said_of([judged(), line]) == []
    # Two held-out rewards may trade with each other without any hacking.
    assert said_of([judged(), judged(reward_strict_mean=up, reward_palette_mean=down)]) == []
    # It is the first evaluation that counts, not the one before.
    assert said_of(
        [
            judged(),
            judged(reward_composition_mean=0.55, reward_palette_mean=0.45),
            judged(reward_composition_mean=up, reward_palette_mean=down),
            judged(reward_composition_mean=0.9, reward_palette_mean=0.1),
        ]
    ) == [found[0].replace("iteration 10", "iteration 20")]
    # Once a run, also where it stops for a long time and comes back.
    hacked = judged(reward_composition_mean=up, reward_palette_mean=down)
    assert len(said_of([judged(), hacked, *[judged()] * 80, hacked])) == 1


def test_one_image_shows_no_hacking() -> None:
    def one(**changed: float) -> Line:
        stds = {key: 0.0 for key in judged() if key.endswith("_std")}
        return judged(**stds, prompts=1, images=1, **changed)

    assert said_of([one(), one(reward_composition_mean=0.9, reward_palette_mean=0.1)]) == []


def test_a_reward_without_spread_can_fall() -> None:
    before = judged(reward_palette_mean=1.0, reward_palette_std=0.0)
    now = judged(reward_composition_mean=0.9, reward_palette_mean=0.5, reward_palette_std=0.0)
    assert len(said_of([before, now])) == 1
    assert said_of([before, judged(reward_composition_mean=0.9, **_of(before, "palette"))]) == []


def _of(line: Line, name: str) -> Line:
    return {key: value for key, value in line.items() if key.startswith(f"reward_{name}_")}


def test_distribution_collapse() -> None:
    assert said_of([judged(diversity=0.5), judged(diversity=0.25)]) == []
    found = said_of([judged(diversity=0.5), *[judged(diversity=0.24)] * 5])
    assert len(found) == 1
    assert found[0].startswith("iteration 10: distribution collapse")
    assert "0.5 -> 0.24" in found[0]
    # One image per prompt has no diversity.
    assert said_of([judged(), judged(diversity=0.1)]) == []


@pytest.mark.parametrize(("pause", "times"), [(QUIET - 1, 1), (QUIET, 2)])
def test_a_warning_is_given_again_after_a_long_absence(pause: int, times: int) -> None:
    down = metrics(reward_clarity_std=0.0)
    # The first two lines of the second outage count as free of it, since three make one.
    assert len(said([*[down] * 70, *[metrics()] * (pause - 2), *[down] * 70])) == times


def test_numbers_that_are_none() -> None:
    nan = math.nan
    line = metrics(noise_floor=nan, clip_fraction=nan, gradient_cosine=nan, drift_image_kl=nan)
    assert said([line] * 20) == []
    # Nor does one of them become what later ones are measured by.
    assert len(said([metrics(drift_image_kl=value) for value in (nan, 1.0, 5.0)])) == 1
    assert said([metrics(noise_floor=None, clip_fraction=None, ratio_max=None)] * 20) == []


near = st.sampled_from([0.0, 0.5, 0.9, 0.95])
some_metrics = st.builds(
    metrics,
    noise_floor=st.sampled_from([0.0, 2e-4]),
    groups_without_variance=st.integers(0, 8),
    clip_fraction=near,
    reward_clarity_std=st.sampled_from([0.0, 0.1]),
    gradient_cosine=st.sampled_from([None, -0.9, 0.3]),
    drift_image_kl=st.sampled_from([None, 0.1, 0.5]),
)
some_evaluation = st.builds(
    judged,
    reward_composition_mean=near,
    reward_palette_mean=near,
    diversity=st.sampled_from([0.1, 0.3]),
)


@given(
    lines=st.lists(some_metrics, max_size=30),
    evaluations=st.lists(some_evaluation, max_size=6),
    stopped=st.integers(0, 30),
)
def test_a_resumed_run_neither_forgets_nor_repeats(
    lines: list[Line], evaluations: list[Line], stopped: int
) -> None:
    lines = [{"iteration": i, **line} for i, line in enumerate(lines)]
    evaluations = [{"iteration": 5 * i, **line} for i, line in enumerate(evaluations)]

    def go(health: Health, begin: int, end: int) -> list[str]:
        """The warnings of some iterations; an evaluation comes before its iteration."""
        found: list[str] = []
        for i in range(begin, end):
            for line in evaluations:
                found += health.evaluation(line) if line["iteration"] == i else []
            found += health.iteration(lines[i]) if i < len(lines) else []
        return found

    resumed = Health(CONFIG)
    # Read back from the files, first the one and then the other.
    for line in lines[:stopped]:
        resumed.iteration(json.loads(json.dumps(line)))
    for line in evaluations:
        if line["iteration"] < stopped:
            resumed.evaluation(json.loads(json.dumps(line)))
    before = go(Health(CONFIG), 0, stopped)
    assert before + go(resumed, stopped, 31) == go(Health(CONFIG), 0, 31)


def test_the_committed_measurements_say_what_is_known_of_them() -> None:
    """Every run of the tau sweep; Welch's t statistic is the number of standard errors."""
    settings = RunConfig.model_validate({"rewards": {"train": {"composition": 1.0}}})
    frames = {
        name: pd.read_parquet(Path(ROOT, "reports", "tau", f"{name}.parquet"))
        for name in ("metrics", "evals")
    }
    groups = settings.rollout.prompts
    for key, lines in frames["metrics"].groupby(["arm", "seed"]):
        health = Health(settings)
        found = [text for line in lines.to_dict("records") for text in health.iteration(line)]
        idle = lines.loc[lines["groups_without_variance"] == groups, "iteration"]
        few = lines["groups_without_variance"].rolling(10).sum() > 10 * groups / 2
        expected = {
            "none of the": idle.min(),
            "of the last 10 iterations had no": lines.loc[few, "iteration"].min(),
        }
        drift = lines.dropna(subset="drift_image_kl")
        far = drift["drift_image_kl"] > max(4 * drift["drift_image_kl"].iloc[0], 0.5)
        expected["moved away from those of the ODE"] = drift.loc[far, "iteration"].min()
        expected = {part: first for part, first in expected.items() if first == first}
        assert len(found) == len(expected)
        for part, first in expected.items():
            assert sum(part in text and text.startswith(f"iteration {first}:") for text in found)

        evals = frames["evals"]
        evals = evals[(evals["arm"] == key[0]) & (evals["seed"] == key[1])]
        records = evals.to_dict("records")
        warned = [text for line in records for text in health.evaluation(line)]
        expected_pairs = {
            (line["iteration"], held_out)
            for held_out in ("palette", "strict")
            for line in records
            if _welch("composition", records[0], line) > 2
            and _welch(held_out, records[0], line) < -2
        }
        first = min((iteration for iteration, _ in expected_pairs), default=None)
        assert len(warned) == (first is not None)  # once a run
        for iteration, held_out in expected_pairs:
            if iteration == first:
                assert warned[0].startswith(f"iteration {first}: reward hacking: composition (")
                assert f"{held_out} (" in warned[0]


def _welch(name: str, before: Line, now: Line) -> float:
    def of(line: Line) -> tuple[float, float, int]:
        return line[f"reward_{name}_mean"], line[f"reward_{name}_std"], line["images"]

    return float(ttest_ind_from_stats(*of(now), *of(before), equal_var=False).statistic)
