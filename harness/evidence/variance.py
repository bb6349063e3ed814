"""The variance behind a difference, taken apart: images, prompts, seeds, prompt x arm.

Every evaluation scores each prompt with several images. Arms with the same seed share the noise of
every image (its noise depends on seed, prompt and index alone), so scores are an array
[arms, seeds, prompts, images] in which image j of prompt p and seed s has the same noise in all
arms. Prompts are fixed: what is said holds for these prompts; `over_prompts` gives the interval in
which they are a sample too.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.evidence.intervals import Interval
from harness.evidence.verdict import MIN_PAIRS

Scores = npt.NDArray[np.floating]

RESAMPLES = 4000


@dataclass(frozen=True)
class PairedVariance:
    """The variance between seeds of one arm's paired difference of mean scores, units squared."""

    seeds: int
    prompts: int
    images: int
    total: float
    """Between seeds, of the difference of means over prompts and images; NaN with one seed."""
    evaluation: float
    """What the images' noise adds to it: (1 / P^2) sum_p Var_j(e_pj) / J, mean over seeds, with
    e_pj the difference of image j of prompt p."""

    @property
    def training(self) -> float:
        """The rest: what more images cannot reduce; 0 where evaluation explains more than all."""
        return max(0.0, self.total - self.evaluation)

    @property
    def evaluation_fraction(self) -> float:
        """Evaluation's part of the total; above 1 by chance where training adds little."""
        return self.evaluation / self.total

    @property
    def floor(self) -> float:
        """The standard deviation of a paired difference that evaluation alone makes; below it no
        spread is believed."""
        return math.sqrt(self.evaluation)

    @property
    def within_prompt(self) -> float:
        """Mean over prompts of the variance of one image's difference about its prompt's."""
        return self.evaluation * self.prompts * self.images

    def floor_at(self, images: int) -> float:
        """The floor with another number of images per prompt."""
        return math.sqrt(self.within_prompt / (self.prompts * images))


def paired_variance(arm: Scores, reference: Scores) -> PairedVariance:
    """Of scores [seeds, prompts, images] of two arms with common noise, the same seeds in the same
    order. Needs two images per prompt; raises ValueError without, or for scores not finite."""
    y, y0 = _finite(arm), _finite(reference)
    if y.shape != y0.shape or y.ndim != 3:
        raise ValueError(f"scores [seeds, prompts, images] of one shape: {y.shape}, {y0.shape}")
    seeds, prompts, images = y.shape
    if images < 2:
        raise ValueError("one image per prompt does not show how images vary")
    e = y - y0
    evaluation = e.var(axis=2, ddof=1).mean(axis=1) / (prompts * images)
    total = float(e.mean(axis=(1, 2)).var(ddof=1)) if seeds > 1 else math.nan
    return PairedVariance(seeds, prompts, images, total, float(evaluation.mean()))


@dataclass(frozen=True)
class Components:
    """Variances of one image's score, in units squared; NaN where the array cannot show one."""

    prompts: float
    """Between prompts: some are easier for every arm and seed."""
    prompt_x_arm: float
    """Arms that change some prompts more than others."""
    seeds: float
    """Between seeds, common to all arms that share the seed."""
    seed_x_arm: float
    """Between runs of one arm beyond that: the training noise of a paired difference."""
    prompt_x_seed: float
    """Runs that change some prompts more than others, common to arms of the seed or not."""
    images_shared: float
    """Images of one prompt, common to all arms: cancels in a paired difference."""
    images: float
    """Images of one prompt in one run beyond that: what evaluation adds to a difference."""


def components(scores: Scores) -> Components:
    """Analysis of variance of scores [arms, seeds, prompts, images], or [seeds, prompts, images] of
    one arm.

    Model: y_aspj = mean + A_a + S_s + P_p + AS + AP + SP + ASP + I_spj + E_aspj, all random, images
    nested in seed and prompt and crossed with arms (common noise). Components are the mean squares
    solved for their expectations (Searle, Casella and McCulloch 1992, chapter 4), 0 where that is
    negative. Of one arm, everything that arms share or not falls together: `seeds`, `images` and
    `prompt_x_seed` have the whole, the others are NaN. Needs two seeds, prompts and images.
    """
    y = _finite(scores)
    y = y[None] if y.ndim == 3 else y
    if y.ndim != 4 or min(y.shape[1:]) < 2:
        raise ValueError(f"needs two seeds, prompts and images: scores of shape {y.shape}")
    a, n, p, j = y.shape
    cell = y.mean(3)
    shared = y.mean(0)  # [seeds, prompts, images]

    within = shared - shared.mean(2, keepdims=True)
    ms_i = a * float((within**2).sum()) / (n * p * (j - 1))
    # Means over arms, [seeds, prompts], and their two-way table.
    sp = cell.mean(0)
    s, q, grand = sp.mean(1), sp.mean(0), float(sp.mean())
    ms_s = a * p * j * float(((s - grand) ** 2).sum()) / (n - 1)
    ms_p = a * n * j * float(((q - grand) ** 2).sum()) / (p - 1)
    rest = sp - s[:, None] - q + grand
    ms_sp = a * j * float((rest**2).sum()) / ((n - 1) * (p - 1))
    if a == 1:
        return Components(
            prompts=max(0.0, (ms_p - ms_sp) / (n * j)),
            prompt_x_arm=math.nan,
            seeds=max(0.0, (ms_s - ms_sp) / (p * j)),
            seed_x_arm=math.nan,
            prompt_x_seed=max(0.0, (ms_sp - ms_i) / j),
            images_shared=math.nan,
            images=ms_i,
        )
    residual = (y - cell[..., None]) - within
    ms_e = float((residual**2).sum()) / ((a - 1) * n * p * (j - 1))
    # Each arm's deviation from the means over arms, [arms, seeds, prompts].
    d = cell - sp
    d_as, d_ap, d_a = d.mean(2), d.mean(1), d.mean((1, 2))
    ms_as = p * j * float(((d_as - d_a[:, None]) ** 2).sum()) / ((a - 1) * (n - 1))
    ms_ap = n * j * float(((d_ap - d_a[:, None]) ** 2).sum()) / ((a - 1) * (p - 1))
    rest = d - d_as[:, :, None] - d_ap[:, None] + d_a[:, None, None]
    ms_asp = j * float((rest**2).sum()) / ((a - 1) * (n - 1) * (p - 1))

    asp = max(0.0, (ms_asp - ms_e) / j)
    sp_shared = max(0.0, (ms_sp - ms_asp - ms_i + ms_e) / (a * j))
    return Components(
        prompts=max(0.0, (ms_p - ms_sp - ms_ap + ms_asp) / (a * n * j)),
        prompt_x_arm=max(0.0, (ms_ap - ms_asp) / (n * j)),
        seeds=max(0.0, (ms_s - ms_sp - ms_as + ms_asp) / (a * p * j)),
        seed_x_arm=max(0.0, (ms_as - ms_asp) / (p * j)),
        prompt_x_seed=sp_shared + asp,
        images_shared=max(0.0, (ms_i - ms_e) / a),
        images=ms_e,
    )


def over_prompts(differences: Scores, level: float = 0.95, seed: int = 0) -> tuple[Interval, float]:
    """The mean of differences [seeds, prompts] where prompts are a sample too; its standard error.

    Bootstrap of seeds and prompts, each drawn anew and crossed (Owen 2007, pigeonhole bootstrap);
    its interval is the percentile one. It counts a cell's own noise three times, so errs on
    the wide side there; with few seeds a percentile interval is too narrow by itself.
    """
    d = _finite(differences)
    seeds, prompts = d.shape
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    of_prompts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES) / prompts
    means = ((of_seeds @ d) * of_prompts).sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(d.mean()), float(low), float(high), level), float(means.std(ddof=1))


@dataclass(frozen=True)
class Division:
    """A budget divided between seeds and images per prompt."""

    seeds: int
    images: int
    cost: float
    standard_error: float
    """Of the mean paired difference."""


def best_images(
    cost_run: float, cost_image: float, evaluation_per_image: float, training: float
) -> float:
    """Images per prompt at which a budget resolves most.

    J = sqrt((c_run / c_image) (mean within-prompt variance / P) / Var_train): the least of
    (Var_train + V / J) (c_run + J c_image). c_run: one run without this evaluation; c_image: one
    image of every prompt; any one unit. `evaluation_per_image`: V = within_prompt / prompts of
    `PairedVariance`. Infinite where training adds nothing.
    """
    if training <= 0:
        return math.inf
    return math.sqrt(cost_run / cost_image * evaluation_per_image / training)


def divide(
    budget: float, cost_run: float, cost_image: float, variance: PairedVariance
) -> Division | None:
    """The division of a budget, for one arm's runs, with the least standard error.

    In whole seeds, three or more, and whole images; None where the budget does not pay for three
    seeds of one image.
    """
    most_seeds = int(budget // (cost_run + cost_image))
    best = None
    for seeds in range(MIN_PAIRS, most_seeds + 1):
        # With these seeds, the rest of the budget buys images.
        images = int((budget / seeds - cost_run) // cost_image)
        cost = seeds * (cost_run + images * cost_image)
        error = math.sqrt((variance.training + variance.floor_at(images) ** 2) / seeds)
        if best is None or error < best.standard_error:
            best = Division(seeds, images, cost, error)
    return best


def cheaper(
    images: int, cost_run: float, cost_image: float, variance: PairedVariance
) -> Literal["seeds", "images"]:
    """What the next unit of cost is better spent on, at `images` per prompt: images below the best
    number (`best_images`), seeds from there on."""
    v = variance.within_prompt / variance.prompts
    best = best_images(cost_run, cost_image, v, variance.training)
    return "images" if images < best else "seeds"


def _finite(scores: Scores) -> npt.NDArray[np.float64]:
    y = np.asarray(scores, dtype=float)
    if not np.isfinite(y).all():
        raise ValueError("scores must be finite; leave collapsed runs out")
    return y
