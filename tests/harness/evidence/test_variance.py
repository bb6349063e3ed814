"""Variance taken apart: components that were put in come out."""

import math

import numpy as np
import pytest

from harness.evidence.variance import (
    PairedVariance,
    best_images,
    cheaper,
    components,
    divide,
    over_prompts,
    paired_variance,
)


def simulated(rng, sd, arms=3, seeds=8, prompts=20, images=4):
    """Scores [arms, seeds, prompts, images] of the model of `components`."""

    def part(name, *shape):
        return sd.get(name, 0.0) * rng.standard_normal(shape)

    return (
        part("prompts", 1, 1, prompts, 1)
        + part("prompt_x_arm", arms, 1, prompts, 1)
        + part("seeds", 1, seeds, 1, 1)
        + part("seed_x_arm", arms, seeds, 1, 1)
        + part("seed_x_prompt", 1, seeds, prompts, 1)
        + part("seed_x_prompt_x_arm", arms, seeds, prompts, 1)
        + part("images_shared", 1, seeds, prompts, images)
        + part("images", arms, seeds, prompts, images)
    )


PARTS = {
    "prompts": 1.0,
    "prompt_x_arm": 0.5,
    "seeds": 0.4,
    "seed_x_arm": 0.3,
    "seed_x_prompt": 0.6,
    "seed_x_prompt_x_arm": 0.5,
    "images_shared": 0.8,
    "images": 0.7,
}


def test_components_are_those_put_in():
    rng = np.random.default_rng(0)
    found = [components(simulated(rng, PARTS)) for _ in range(200)]

    def mean(name):
        return np.mean([getattr(c, name) for c in found])

    for name in ("prompts", "prompt_x_arm", "seeds", "seed_x_arm", "images_shared", "images"):
        assert mean(name) == pytest.approx(PARTS[name] ** 2, rel=0.08), name
    assert mean("prompt_x_seed") == pytest.approx(0.6**2 + 0.5**2, rel=0.05)


def test_components_of_one_arm_fall_together():
    rng = np.random.default_rng(1)
    found = [components(simulated(rng, PARTS, arms=1)[0]) for _ in range(300)]
    assert np.mean([c.images for c in found]) == pytest.approx(0.8**2 + 0.7**2, rel=0.05)
    assert np.mean([c.seeds for c in found]) == pytest.approx(0.4**2 + 0.3**2, rel=0.1)
    assert np.mean([c.prompts for c in found]) == pytest.approx(1 + 0.5**2, rel=0.08)
    assert math.isnan(found[0].prompt_x_arm)


def test_a_paired_difference_by_hand_and_by_repeating_the_evaluation():
    rng = np.random.default_rng(2)
    y = simulated(rng, PARTS, arms=2, seeds=6, prompts=5, images=3)
    found = paired_variance(y[0], y[1])
    e = y[0] - y[1]
    by_hand = np.mean([sum(np.var(e[s, p], ddof=1) / 3 for p in range(5)) / 25 for s in range(6)])
    assert found.evaluation == pytest.approx(by_hand)
    assert found.total == pytest.approx(np.var(e.mean((1, 2)), ddof=1))
    assert found.floor == pytest.approx(math.sqrt(by_hand))
    assert found.floor_at(12) == pytest.approx(found.floor / 2)
    # Evaluations anew, with fixed prompts and trained runs: their spread is the floor.
    noise = 0.7 * math.sqrt(2) * rng.standard_normal((4000, 5, 3))
    many = [paired_variance(n[None], np.zeros((1, 5, 3))) for n in noise[:300]]
    assert np.mean([m.evaluation for m in many]) == pytest.approx(
        noise.mean((1, 2)).var(), rel=0.07
    )
    assert math.isnan(many[0].total)


def test_what_arms_share_cancels():
    rng = np.random.default_rng(3)
    y = simulated(rng, {"images_shared": 1.0, "seeds": 1.0, "prompts": 1.0}, arms=2)
    found = paired_variance(y[0], y[1])
    assert found.total == pytest.approx(0, abs=1e-20)
    assert found.evaluation == pytest.approx(0, abs=1e-20)


def test_the_example_of_the_specification():
    # Scenes: sd .0116 at J = 8, P = 77, 78 % of the variance.
    v = PairedVariance(8, 77, 8, 0.0116**2 / 0.78, 0.0116**2)
    assert v.evaluation_fraction == pytest.approx(0.78)
    assert math.sqrt(v.total) == pytest.approx(0.0131, abs=5e-5)
    # With 64 images the spread is .0074, worth three times the seeds.
    at_64 = math.sqrt(v.training + v.floor_at(64) ** 2)
    assert at_64 == pytest.approx(0.0074, abs=5e-5)
    assert v.total / at_64**2 == pytest.approx(3, abs=0.2)


def test_the_best_division_is_the_formula_and_the_least_error():
    v = PairedVariance(8, 77, 8, 0.0116**2 / 0.78, 0.0116**2)
    cost_run, cost_image = 600.0, 3.0
    best = best_images(cost_run, cost_image, v.within_prompt / 77, v.training)
    curve = [(v.training + v.floor_at(j) ** 2) * (cost_run + j * cost_image) for j in range(1, 400)]
    assert abs(1 + int(np.argmin(curve)) - best) < 1
    found = divide(20_000, cost_run, cost_image, v)
    assert found is not None
    assert found.cost <= 20_000
    assert found.images == pytest.approx(best, rel=0.25)
    brute = min(
        math.sqrt((v.training + v.floor_at(j) ** 2) / n)
        for n in range(3, 34)
        for j in range(1, 3000)
        if n * (cost_run + j * cost_image) <= 20_000
    )
    assert found.standard_error == pytest.approx(brute)
    assert cheaper(8, cost_run, cost_image, v) == "images"
    assert cheaper(400, cost_run, cost_image, v) == "seeds"


def test_divisions_at_their_limits():
    only_images = PairedVariance(8, 10, 4, 1e-4, 2e-4)
    assert only_images.training == 0
    assert best_images(1.0, 1.0, 1.0, 0.0) == math.inf
    assert divide(10.0, 100.0, 1.0, only_images) is None
    found = divide(1000.0, 100.0, 1.0, only_images)
    assert found is not None
    assert found.seeds >= 3


def test_random_prompts_give_the_standard_error_of_a_simulation():
    rng = np.random.default_rng(4)

    def draw():
        parts = {"prompts": 0.5, "seeds": 0.4, "images": 0.3}
        return simulated(rng, parts, 1, 10, 30, 1)[0, :, :, 0]

    means = [draw().mean() for _ in range(2000)]
    found = [over_prompts(draw(), seed=k) for k in range(20)]
    assert np.mean([error for _, error in found]) == pytest.approx(np.std(means), rel=0.1)
    interval, error = found[0]
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low == pytest.approx(3.92 * error, rel=0.1)


def test_what_is_refused():
    ones = np.ones((2, 3, 1))
    with pytest.raises(ValueError, match="one image"):
        paired_variance(ones, ones)
    with pytest.raises(ValueError, match="one shape"):
        paired_variance(ones, np.ones((3, 3, 1)))
    with pytest.raises(ValueError, match="two seeds"):
        components(np.ones((1, 3, 2)))
    with pytest.raises(ValueError, match="finite"):
        components(np.full((2, 3, 2), np.nan))
