"""Whether a search's space has settings that can be run, before anything of it is written."""

from collections import Counter
from collections.abc import Iterator

from harness.searching.file import Search
from harness.searching.space import Asked, suggest
from harness.searching.storage import quiet
from harness.study.mistakes import error_at
from mixgrpo.errors import ConfigError, ErrorList, shown

_TRIES = 60
"""Settings drawn at random before a space, or a choice, counts as one that can never be run."""


def check_space(search: Search) -> None:
    """ConfigError where no setting of the space can be run, or none with one of its choices.

    A range may go further than what can be run: a trial beyond is given up with its reason.
    """
    why = _why_never(search, {})
    if why:
        raise error_at(search.document, ("space",), f"none of its settings can be run: {why}")
    errors = ErrorList()
    drawn = {key for asked in _draw(search, {}) for key in asked}
    for one in search.space:
        keys = [("profiles", search.profile, "space", one.key), ("space", one.key)]
        key = next(k for k in keys if k in search.document.lines)
        wrong = []
        if one.key not in drawn:
            wrong = [f"none of {_TRIES} settings asks for it: `unless` excludes all of them"]
        elif one.choices:
            reasons = {value: _why_never(search, {one.key: value}) for value in one.choices}
            wrong = [
                f"no setting of the space can be run with {shown(value)}: {why}"
                for value, why in reasons.items()
                if why
            ]
        errors.errors += [error_at(search.document, key, message) for message in wrong]
    errors.raise_all()


def _why_never(search: Search, fixed: Asked) -> str:
    """Why no setting of the space with these values can be run; empty where one can."""
    reasons: Counter[str] = Counter()
    for asked in _draw(search, fixed):
        if not fixed.keys() <= asked.keys():  # not asked for with the others
            continue
        try:
            search.config(asked)
        except ConfigError as error:
            reasons[error.without_place] += 1
        else:
            return ""
    return reasons.most_common(1)[0][0] if reasons else ""


def _draw(search: Search, fixed: Asked) -> Iterator[Asked]:
    """Settings of the space, drawn at random, with some values fixed."""
    with quiet():
        from optuna import create_study
        from optuna.samplers import PartialFixedSampler, RandomSampler

        study = create_study(sampler=PartialFixedSampler(fixed, RandomSampler(seed=0)))
    for _ in range(_TRIES):
        yield suggest(search.space, study.ask())
