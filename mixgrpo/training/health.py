"""Warnings in plain language where the numbers of a run mean trouble.

A function of the lines of metrics.jsonl and eval.jsonl alone. A run that is resumed reads its
lines back in here and goes on as if it had never stopped.
"""

import math
from collections import deque
from typing import Any

from mixgrpo.settings.config import RunConfig

QUIET = 50
"""A warning is repeated only after this many lines without its cause."""

MOST_GROUPS = 0.5
"""The fraction of groups without variance above which most of the sampling is wasted."""

GROUPS_OVER = 10
"""Iterations over which that fraction is taken: hard prompts can reach it in a single one."""

CONSTANT_FOR = 3
"""Iterations with one and the same reward for all images; one or two can be an easy batch."""

CONSTANT_SPREAD = 1e-6
"""A std below this part of the mean is rounding: 96 times 0.1 in float32 have a std of 7e-9."""

CLIPPED = 0.9
"""The clip fraction above which next to nothing of the policy ratio is left to learn from."""

CLIPPED_FOR = 5
"""Iterations above it; single ones happen where the window has just moved."""

STANDARD_ERRORS = 2.0
"""A change of a reward by fewer standard errors of the difference may be chance."""

COLLAPSE = 0.5
"""The part of the first diversity below which images of one prompt have become the same image."""

CONFLICT = -0.2
"""The mean cosine of gradients below which the steps undo each other's work; chance gives 0."""

CONFLICT_OVER = 10
"""Values that the mean is taken over; one alone is an estimate from a few images."""

DRIFT = 4.0
"""Growth of drift_image_kl over its first value that is due to training: moving the window alone
makes less."""

DRIFT_LEAST = 0.5
"""Below it the ODE's image is within a standard deviation of the SDE's, which is little."""

_VARIANCE = (
    "raise sampler.eta or rollout.group_size, keep the window at earlier steps (window.stop), or "
    "train on a reward that tells images apart more finely"
)


class Health:
    """Reads every line of a run in order, and says each kind of trouble once.

    The warnings depend on the lines only: each method needs the lines of its file in order; how the
    two files interleave makes no difference.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._quiet: dict[str, int] = {}
        self._groups: deque[tuple[int, int]] = deque(maxlen=GROUPS_OVER)
        self._constant = dict.fromkeys(config.rewards.train, 0)
        self._clipped = 0
        self._cosines: deque[float] = deque(maxlen=CONFLICT_OVER)
        self._first_drift: float | None = None
        self._window = config.make_window()
        self._first_evaluation: dict[str, Any] | None = None
        self._hacked = False

    def iteration(self, line: dict[str, Any]) -> list[str]:
        """The new warnings after one line of metrics.jsonl, one sentence each."""
        # Lines of an older version do not say how many groups there were.
        groups = line.get("groups", self.config.rollout.prompts)
        self._groups.append((line["groups_without_variance"], groups))
        warnings = [
            self._whole_window(line),
            self._noise(line),
            self._nothing_learned(),
            self._little_variance(),
            *(self._constant_reward(name, line) for name in self.config.rewards.train),
            self._clip(line),
            self._conflict(line),
            self._drift(line),
        ]
        return [f"iteration {line['iteration']}: {text}" for text in warnings if text]

    def evaluation(self, line: dict[str, Any]) -> list[str]:
        """The new warnings after one line of eval.jsonl, one sentence each."""
        if self._first_evaluation is None:
            self._first_evaluation = line
            return []
        warnings = [
            self._hacking(self._first_evaluation, line),
            self._collapse(self._first_evaluation, line),
        ]
        return [f"iteration {line['iteration']}: {text}" for text in warnings if text]

    def _whole_window(self, line: dict[str, Any]) -> str | None:
        size = self._window.size
        released = self._window.released_size_at(line["iteration"])
        if not self._new("whole window", released < size):
            return None
        return (
            f"the released code's window would be {released} steps long from here on; "
            f"window.at_end released keeps it whole, at steps {self._window.last} to "
            f"{self._window.last + size - 1}, until it begins again"
        )

    def _noise(self, line: dict[str, Any]) -> str | None:
        clip, floor = self.config.objective.clip_range, _number(line, "noise_floor")
        if not self._new("noise", floor is not None and floor > clip):
            return None
        return (
            f"objective.clip_range {clip:g} lies below the numerical noise of the log-probs "
            f"({floor:.1e} before any update); raise it, or compute in higher precision"
        )

    def _nothing_learned(self) -> str | None:
        count, groups = self._groups[-1]
        if not self._new("nothing learned", count == groups):
            return None
        return (
            f"none of the {groups} groups had any variance in its rewards, so there was no "
            f"gradient and nothing was learned in this iteration; if it happens often, {_VARIANCE}"
        )

    def _little_variance(self) -> str | None:
        without, groups = (sum(values) for values in zip(*self._groups, strict=True))
        full = len(self._groups) == GROUPS_OVER
        if not self._new("little variance", full and without > MOST_GROUPS * groups):
            return None
        return (
            f"{without} of the {groups} groups of the last {GROUPS_OVER} iterations had no "
            f"variance in their rewards, so most of the sampling teaches nothing; {_VARIANCE}"
        )

    def _constant_reward(self, name: str, line: dict[str, Any]) -> str | None:
        mean, std = _number(line, f"reward_{name}_mean"), _number(line, f"reward_{name}_std")
        if mean is None or std is None:
            return None
        self._constant[name] = self._constant[name] + 1 if std <= CONSTANT_SPREAD * abs(mean) else 0
        if not self._new(f"constant {name}", self._constant[name] >= CONSTANT_FOR):
            return None
        return (
            f"the reward {name} gave every image of the last {CONSTANT_FOR} iterations the same "
            f"score ({mean:g}), as a reward whose server is down does, and teaches nothing; check "
            "it, or leave it out of rewards.train"
        )

    def _clip(self, line: dict[str, Any]) -> str | None:
        fraction, ratio = _number(line, "clip_fraction"), _number(line, "ratio_max")
        if fraction is None:
            return None
        self._clipped = self._clipped + 1 if fraction > CLIPPED else 0
        if not self._new("clip", self._clipped >= CLIPPED_FOR):
            return None
        seen = "" if ratio is None else f", ratio_max {ratio:.1e}"
        return (
            f"more than {CLIPPED:.0%} of the ratios have been clipped for {CLIPPED_FOR} "
            f"iterations (clip_fraction {fraction:.2f}{seen}, objective.clip_range "
            f"{self.config.objective.clip_range:g}), so the clip decides what is learned and not "
            "the reward; lower optimizer.lr or objective.updates, or raise objective.clip_range"
        )

    def _conflict(self, line: dict[str, Any]) -> str | None:
        cosine = _number(line, "gradient_cosine")
        if cosine is None:
            return None
        self._cosines.append(cosine)
        mean = math.fsum(self._cosines) / len(self._cosines)
        full = len(self._cosines) == CONFLICT_OVER
        if not self._new("conflict", full and mean < CONFLICT):
            return None
        return (
            "the gradients of the window's first and last step point against each other (cosine "
            f"{mean:.2f} on average over {CONFLICT_OVER} iterations), so that what one step learns "
            "the other undoes; make window.size smaller"
        )

    def _drift(self, line: dict[str, Any]) -> str | None:
        drift = _number(line, "drift_image_kl")
        if drift is None:
            return None
        if self._first_drift is None:
            self._first_drift = drift
        first = self._first_drift
        if not self._new("drift", drift > max(DRIFT * first, DRIFT_LEAST)):
            return None
        return (
            "the images of the SDE, which are trained on, have moved away from those of the ODE, "
            f"which are evaluated (drift_image_kl {first:.2g} -> {drift:.2g}), so that learning "
            "may not carry over; lower sampler.eta or optimizer.lr"
        )

    def _hacking(self, before: dict[str, Any], now: dict[str, Any]) -> str | None:
        """Said once of a run, naming all rewards that it concerns by then."""
        rewards = self.config.rewards
        limit = STANDARD_ERRORS
        risen = [r for r in rewards.train if _standard_errors(r, before, now) > limit]
        fallen = [r for r in rewards.held_out if _standard_errors(r, before, now) < -limit]
        if self._hacked or not (risen and fallen):
            return None
        self._hacked = True
        up, down = (_listed([_change(r, before, now) for r in some]) for some in (risen, fallen))
        return (
            f"reward hacking: {up}, trained on, rose while {down}, held out, fell, by more than "
            f"{limit:g} standard errors each; raise objective.kl_weight, train on "
            f"{_listed(fallen)} too (rewards.train), or use an earlier checkpoint"
        )

    def _collapse(self, before: dict[str, Any], now: dict[str, Any]) -> str | None:
        first, diversity = _number(before, "diversity"), _number(now, "diversity")
        if first is None or diversity is None:
            return None
        if not self._new("collapse", diversity < COLLAPSE * first):
            return None
        return (
            "distribution collapse: images of one prompt from different noise are less than half "
            f"as far apart as at the first evaluation (diversity {first:.3g} -> {diversity:.3g}); "
            "raise objective.kl_weight, lower optimizer.lr, or use an earlier checkpoint"
        )

    def _new(self, kind: str, present: bool) -> bool:
        """Whether to warn: the trouble is present now, and was not in the last `QUIET` lines."""
        quiet = self._quiet.get(kind, QUIET)
        self._quiet[kind] = 0 if present else quiet + 1
        return present and quiet >= QUIET


def _number(line: dict[str, Any], key: str) -> float | None:
    """The value of a key; None where it is absent, null or NaN."""
    value = line.get(key)
    return None if value is None or math.isnan(value) else float(value)


def _standard_errors(name: str, before: dict[str, Any], now: dict[str, Any]) -> float:
    """By how many standard errors of the difference a reward's mean has changed.

    As of independent images; the two evaluations share prompts and noise, which makes the true
    error smaller, so this errs on the side of saying nothing. 0 where either is of one image.
    """
    if min(before["images"], now["images"]) < 2:
        return 0.0
    variance = math.fsum(line[f"reward_{name}_std"] ** 2 / line["images"] for line in (before, now))
    difference = float(now[f"reward_{name}_mean"] - before[f"reward_{name}_mean"])
    if not variance:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / math.sqrt(variance)


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _change(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    key = f"reward_{name}_mean"
    return f"{name} ({before[key]:.3f} -> {now[key]:.3f})"
