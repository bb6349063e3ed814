"""Whether a search's space has settings that can be run, before anything of it is written."""

import random
from collections import Counter

from harness.searching.file import Search
from harness.searching.space import Asked, Range, is_asked
from harness.study.sweepfile import error_at
from mixgrpo.errors import ConfigError, ErrorList, shown
from mixgrpo.settings.yamlfile import Key

_TRIES = 60
"""Settings drawn at random before a space, or a choice, counts as one that can never be run."""


def check_space(search: Search) -> None:
    """ConfigError where no setting of the space can be run, or none with one of its choices.

    A range may go further than what can be run: a trial beyond is given up with its reason.
    """
    draw = random.Random(0)
    why = _why_never(search, {}, draw)
    if why:
        raise error_at(search.document, ("space",), f"none of its settings can be run: {why}")
    errors = ErrorList()
    drawn = [_settings(search.space, draw, {}) for _ in range(_TRIES)]
    for one in search.space:
        if not any(one.key in asked for asked in drawn):
            key = next(k for k in _keys(search, one.key) if k in search.document.lines)
            message = f"none of {_TRIES} settings asks for it: `unless` excludes all of them"
            errors.errors.append(error_at(search.document, key, message))
            continue
        for value in one.choices or ():
            why = _why_never(search, {one.key: value}, draw)
            if why:
                key = next(k for k in _keys(search, one.key) if k in search.document.lines)
                message = f"no setting of the space can be run with {shown(value)}: {why}"
                errors.errors.append(error_at(search.document, key, message))
    errors.raise_all()


def _keys(search: Search, key: str) -> list[Key]:
    return [("profiles", search.profile, "space", key), ("space", key)]


def _why_never(search: Search, fixed: Asked, draw: random.Random) -> str:
    """Why no setting of the space with these values can be run; empty where one can."""
    reasons: Counter[str] = Counter()
    for _ in range(_TRIES):
        asked = _settings(search.space, draw, fixed)
        if not fixed.keys() <= asked.keys():  # not asked for beside the others
            continue
        try:
            search.config(asked)
        except ConfigError as error:
            reasons[error.without_place] += 1
        else:
            return ""
    return reasons.most_common(1)[0][0] if reasons else ""


def _settings(space: tuple[Range, ...], draw: random.Random, fixed: Asked) -> Asked:
    """Settings of the space, drawn at random, with some values fixed."""
    found: Asked = {}
    for one in space:
        if not is_asked(one, found):
            continue
        if one.key in fixed:
            value = fixed[one.key]
        elif one.choices is not None:
            value = draw.choice(one.choices)
        elif one.step is not None:
            low, high = one.bounds
            value = low + draw.randint(0, round((high - low) / one.step)) * one.step
        elif one.whole:
            value = draw.randint(int(one.bounds[0]), int(one.bounds[1]))
        else:
            value = draw.uniform(*one.bounds)
        found[one.key] = one.tidy(value)
    return found
