"""The spread of each arm's paired differences, moderated by that of the study's other arms.

With five seeds an arm's standard deviation is often wrong by a factor of two, and a verdict can
rest on one that is too small by chance. The arms of a study resemble each other, so each variance
is drawn towards the common one: empirical Bayes as in Smyth (2004), "Linear models and empirical
Bayes methods for assessing differential expression in microarray experiments", section 6.2.

Three things go beyond that paper.
* The degrees of freedom are capped by those of all arms together (limma's `eBayes` does the same),
  counted with the correlation that a common reference gives the arms' variances.
* An arm's spread may be raised by the others, not lowered. With three to eight arms d0 is known
  badly: where the arms' spreads truly differ (d0 = 4), the published rule makes 7.4 % false claims
  a study of eight arms and five seeds, at an error of 5 %; raising only, 5.2 %
  (benchmarks/results/interval_coverage_studies.md). `lowers=True` is the published rule.
* No spread is below a given floor: what evaluation alone must add (`harness.evidence.variance`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Values = npt.NDArray[np.float64]

ARMS_NEEDED = 3
"""With fewer arms, how much variances differ between arms cannot be estimated."""
CORRELATION = 0.5
"""Of the differences of two arms that are compared with one reference, where the three spread
alike."""
LEAST_VARIANCE = 1e-4
"""An arm whose variance is below this fraction of the median arm's does not vary: rounding or a
defect makes it, and its logarithm would decide the common variance alone."""


@dataclass(frozen=True)
class Prior:
    """What the variances of the arms have in common."""

    degrees_of_freedom: float
    """Weight of the common variance, d0; infinite where the arms' variances differ no more than by
    chance."""
    variance: float
    """The common variance s0^2, in the measure's units squared."""


@dataclass(frozen=True)
class Spread:
    """The standard deviation of paired differences that intervals and verdicts use."""

    sd: float
    """In the measure's units; never below `floor`. NaN with fewer than two differences."""
    degrees_of_freedom: float
    measured: float
    """The plain standard deviation of the arm's differences alone."""
    moderated: bool = False
    floor: float = 0.0
    """The least standard deviation, which evaluation alone makes; 0 where it is not known."""

    @property
    def at_floor(self) -> bool:
        """Whether the floor decides the spread."""
        return self.sd == self.floor > 0


def plain(differences: Sequence[float], floor: float = 0.0) -> Spread:
    """The spread of one arm's paired differences [n] alone, on n - 1 degrees of freedom."""
    values = np.asarray(differences, dtype=float)
    measured = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Spread(max(measured, floor), len(values) - 1, measured, floor=floor)


def moderate(
    differences: Mapping[str, Sequence[float]],
    floor: float | Mapping[str, float] = 0.0,
    lowers: bool = False,
) -> dict[str, Spread]:
    """The spread of every arm of a study; `differences[arm]`: paired differences [n of the arm].

    `floor`: of all arms or by arm, in the measure's units. Arms with fewer than two differences
    get NaN, and arms whose differences are all the same take no part in the common variance. Fewer
    than three arms that take part: the plain spreads. `lowers`: an arm's spread may also become
    smaller than the measured one, as published.
    """
    floors = floor if isinstance(floor, Mapping) else dict.fromkeys(differences, floor)
    spreads = {arm: plain(values, floors[arm]) for arm, values in differences.items()}
    measured = np.array([spread.measured for spread in spreads.values()])
    own_df = np.array([spread.degrees_of_freedom for spread in spreads.values()])
    if len(spreads) < ARMS_NEEDED or takes_part(measured**2, own_df).sum() < ARMS_NEEDED:
        return spreads
    variances, df = moderated(measured**2, own_df, lowers)
    return {
        arm: Spread(max(float(sd), floors[arm]), float(d), spread.measured, True, floors[arm])
        if spread.degrees_of_freedom >= 1
        else spread
        for (arm, spread), sd, d in zip(spreads.items(), np.sqrt(variances), df, strict=True)
    }


def moderated(
    variances: Values, degrees_of_freedom: Values, lowers: bool = False
) -> tuple[Values, Values]:
    """Variances [..., G] that intervals use and their degrees of freedom [..., G].

    (d0 s0^2 + d s^2) / (d0 + d) on d0 + d degrees of freedom, at most those of all arms together,
    with d0 and s0^2 by `prior_of`; not below s^2 unless `lowers`. Where d0 is 0 the plain ones.
    """
    d0, s02 = (x[..., None] for x in prior_of(variances, degrees_of_freedom))
    most = pooled_degrees_of_freedom(degrees_of_freedom, takes_part(variances, degrees_of_freedom))
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = 1 / (1 + degrees_of_freedom / d0)
    shrunk = weight * s02 + (1 - weight) * variances
    total = np.minimum(d0 + degrees_of_freedom, most[..., None])
    return (
        shrunk if lowers else np.maximum(shrunk, variances),
        np.maximum(degrees_of_freedom, total),
    )


def prior(variances: Sequence[float], degrees_of_freedom: Sequence[float]) -> Prior:
    """The common variance of arms [G] and its weight (`prior_of`), as numbers."""
    d0, s02 = prior_of(np.asarray(variances, float), np.asarray(degrees_of_freedom, float))
    return Prior(float(d0), float(s02))


def prior_of(variances: Values, degrees_of_freedom: Values) -> tuple[Values, Values]:
    """d0 and s0^2 [...] of the arms' variances s_g^2 and degrees of freedom d_g [..., G].

    With e_g = ln s_g^2 - digamma(d_g / 2) + ln(d_g / 2) and v = var(e) - mean trigamma(d_g / 2):
    v <= 0 gives d0 = infinity and s0^2 = exp(mean e), else trigamma(d0 / 2) = v and
    s0^2 = exp(mean e + digamma(d0 / 2) - ln(d0 / 2)) (Smyth 2004; unequal d_g as in limma). Arms
    that do not vary take no part; where fewer than three do, both are 0.
    """
    part = takes_part(variances, degrees_of_freedom)
    enough = part.sum(-1) >= ARMS_NEEDED
    # Any three arms do where there are too few: the result is not used.
    part = part | ~enough[..., None]
    half = np.maximum(degrees_of_freedom, 1) / 2
    known = np.where(part & (variances > 0), variances, 1.0)
    e = np.log(known) - special.digamma(half) + np.log(half)
    centre = e.mean(-1, where=part)
    trigamma = special.polygamma(1, half).mean(-1, where=part)
    v = e.var(-1, ddof=1, where=part) - trigamma
    finite = v > 0
    half_d0 = trigamma_inverse(np.where(finite, v, 1.0))
    shift = np.where(finite, special.digamma(half_d0) - np.log(half_d0), 0.0)
    d0 = np.where(finite, 2 * half_d0, math.inf)
    return np.where(enough, d0, 0.0), np.where(enough, np.exp(centre + shift), 0.0)


def takes_part(variances: Values, degrees_of_freedom: Values) -> npt.NDArray[np.bool_]:
    """The arms [..., G] that show how much values vary (`LEAST_VARIANCE`)."""
    vary = (variances > 0) & (degrees_of_freedom >= 1)
    # The lower median of those that vary: the others are sorted behind them.
    middle = np.maximum(vary.sum(-1, keepdims=True) - 1, 0) // 2
    ordered = np.sort(np.where(vary, variances, math.inf), axis=-1)
    median = np.take_along_axis(ordered, middle, axis=-1)
    return vary & (variances >= LEAST_VARIANCE * median)


def pooled_degrees_of_freedom(
    degrees_of_freedom: Values, part: npt.NDArray[np.bool_], correlation: float = CORRELATION
) -> Values:
    """Degrees of freedom [...] of the pooled variance of arms [..., G] that share a reference.

    Differences with correlation r have variances with correlation r^2, so the mean of G variances
    on d degrees of freedom each varies as if on G d / (1 + (G - 1) r^2) (Satterthwaite 1946).
    """
    total = (degrees_of_freedom * part).sum(-1)
    return np.asarray(total / (1 + np.maximum(0, part.sum(-1) - 1) * correlation**2))


def trigamma_inverse(values: Values) -> Values:
    """y with trigamma(y) = values > 0, by Newton's method on 1 / trigamma (Smyth 2004)."""
    y = 0.5 + 1 / values
    for _ in range(50):
        trigamma = special.polygamma(1, y)
        step = trigamma * (1 - trigamma / values) / special.polygamma(2, y)
        y = y + step
        if np.all(np.abs(step) <= 1e-12 * y):
            break
    return np.asarray(y)
