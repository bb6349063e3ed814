"""Compares arms with a reference: one row a comparison (`harness.comparison`)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import comparison
from harness.analysis import columns
from harness.analysis.columns import ARM, SEED
from harness.analysis.results import by_seed
from harness.analysis.settings import Settings, flat
from mixgrpo.errors import ConfigError, shown
from mixgrpo.text.suggest import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

Reference = str | Mapping[str, Any]


def compare(
    runs: "pd.DataFrame",
    references: Mapping[str, str],
    measure: str,
    margin: float | None,
    level: float,
) -> "pd.DataFrame":
    """Every arm minus its reference after training, paired by seed. `references`: by arm, a
    reference's being itself. The columns are those of `Study.compare`, without settings.

    The spread of each arm's differences is moderated by the other arms', and the intervals hold
    together with `level`. ConfigError for a margin or level that is none, and for a single arm.
    """
    import pandas as pd

    if margin is not None and not (_is_number(margin) and margin > 0):
        raise ConfigError(f"compare: margin: expected a number above 0, not {shown(margin)}")
    if not (_is_number(level) and 0 < level < 1):
        raise ConfigError(f"compare: level: expected a number between 0 and 1, not {shown(level)}")
    after = {str(arm): _after(rows, measure) for arm, rows in runs.groupby(ARM, observed=True)}
    if all(arm == reference for arm, reference in references.items()):
        raise ConfigError(f"compare: {_listed([*references])} is the only arm; nothing to compare")
    margins = dict.fromkeys(references.values(), margin)
    values = {arm: after.get(arm, {}) for arm in references}
    compared = comparison.compare(values, references, margins, level=level)
    return pd.DataFrame(
        {
            "arm": arm,
            "reference": found.reference,
            "pairs": len(found.seeds),
            "difference": found.simultaneous.mean,
            "low": found.simultaneous.low,
            "high": found.simultaneous.high,
            "verdict": found.verdict,
            "reason": found.reason,
            "level": found.simultaneous.level,
            "sd": found.spread.sd,
            "degrees_of_freedom": float(found.spread.degrees_of_freedom),
        }
        for arm, found in compared.items()
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _after(rows: "pd.DataFrame", measure: str) -> dict[int, float]:
    found = by_seed(rows[[SEED, columns.after(measure)]].dropna(), columns.after(measure))
    return {seed: value for seed, value in found.items() if math.isfinite(value)}


def reference_arm(reference: Reference, settings: Settings) -> str:
    """The arm of this name, or the one arm with these settings. ConfigError where there is none, or
    more than one."""
    if isinstance(reference, str):
        if reference not in settings:
            hint = did_you_mean(reference, settings)
            raise ConfigError(f"compare: reference: no arm {reference}{hint}")
        return reference
    if not isinstance(reference, Mapping) or not reference:
        raise ConfigError(
            "compare: reference: expected an arm's name or settings such as "
            f'{{"window.interval": 5}}, not {shown(reference)}'
        )
    wanted = flat({str(key): value for key, value in reference.items()})
    keys = dict.fromkeys(key for of_arm in settings.values() for key in of_arm)
    for key in wanted:
        if key not in keys:
            hint = did_you_mean(key, keys, listed=False)
            raise ConfigError(f"compare: reference: no setting {key}{hint}")
    fitting = [
        arm
        for arm, of_arm in settings.items()
        if all(key in of_arm and of_arm[key] == value for key, value in wanted.items())
    ]
    if len(fitting) != 1:
        some = f"{len(fitting)} arms have" if fitting else "no arm has"
        which = "name one of them" if fitting else "the arms are"
        raise ConfigError(
            f"compare: reference: {some} {shown(dict(wanted))}; {which}: "
            f"{_listed(fitting or [*settings])}"
        )
    return fitting[0]


def own_references(references: Mapping[str, set[str]], arms: Sequence[str]) -> dict[str, str]:
    """The reference of each of these arms as the sweep files say. ConfigError where they do not
    say one, or several."""
    say = f'; say which, such as compare(reference="{arms[0]}"): {_listed(arms)}'
    found = {}
    for arm in arms:
        of_arm = sorted(references.get(arm, ()))
        if not of_arm:
            raise ConfigError(f"compare: reference: no sweep file names one for {arm}{say}")
        if len(of_arm) > 1:
            raise ConfigError(
                f"compare: reference: {arm} has another one in each study, {_listed(of_arm)}{say}"
            )
        if of_arm[0] not in arms:
            raise ConfigError(f"compare: reference: {of_arm[0]} is not among these runs{say}")
        found[arm] = of_arm[0]
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:30]) + ", ..." * (len(names) > 30)
