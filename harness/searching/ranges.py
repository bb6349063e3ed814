"""The space of a search file -> ranges; its settings -> those of a trial. Errors name the line."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.searching.schema import Part, RangeText, SearchFile, check_choices
from harness.searching.space import Asked, Range, Settings, asked_keys, settings_in_order
from harness.sweepfile import check_setting, error_at
from mixgrpo.configfile import check_value, is_section
from mixgrpo.errors import ConfigError, ErrorList, Place, shown
from mixgrpo.suggest import did_you_mean
from mixgrpo.yamlfile import Document, Key


def flat(
    document: Document, settings: Mapping[str, Any], place: Key, prefix: str = ""
) -> dict[str, tuple[Any, Key]]:
    """Settings, nested or dotted, by dotted key, each with its key in the file."""
    found: dict[str, tuple[Any, Key]] = {}
    errors = ErrorList()
    for name, value in settings.items():
        dotted, here = f"{prefix}{name}", (*place, name)
        with errors.collected():
            if is_section(dotted) and isinstance(value, dict):
                inner = flat(document, value, here, f"{dotted}.")
            else:
                check_setting(document, dotted, here, SearchFile, "search")
                inner = {dotted: (value, here)}
            for key in inner.keys() & found.keys():
                raise error_at(document, here, f"{key} is given twice; keep one")
            found |= inner
    errors.raise_all()
    return found


def read_space(document: Document, parts: Sequence[tuple[Part, Key]]) -> tuple[Range, ...]:
    """The ranges, each after those that it depends on. ConfigError, with every mistake, for what
    cannot be searched."""
    given: dict[str, tuple[Any, Key]] = {}
    errors = ErrorList()
    for part, prefix in parts:
        for key, value in (part.space or {}).items():
            place = (*prefix, "space", key)
            with errors.collected():
                check_setting(document, key, place, SearchFile, "search")
                given[key] = (value, place)
    found = []
    for key, (value, place) in given.items():
        with errors.collected():
            found.append(_range(document, key, value, place, given))
    errors.raise_all()
    if not given:
        raise error_at(
            document,
            ("space",),
            "is empty; give ranges by key, such as {window.size: {low: 1, high: 8}}",
        )
    ordered = settings_in_order(found)
    if ordered is None:
        raise error_at(
            document, ("space",), "settings wait for each other by `unless`; break the circle"
        )
    by_key = {one.key: one for one in found}
    for one in found:
        for other, values in one.unless:
            known = by_key[other]
            for value in values:
                if not (value in known.choices if known.choices else known.has(value)):
                    at = ("space", one.key, "unless", other)
                    message = f"{shown(value)} is not in the range of {other}, {known.text}"
                    raise error_at(document, at, message)
    return ordered


def _range(document: Document, key: str, value: Any, place: Key, given: Mapping[str, Any]) -> Range:
    text = value
    if not isinstance(value, RangeText):
        if not value:
            raise error_at(document, place, "is empty; give at least two values")
        try:
            check_choices(value)
        except ValueError as error:
            raise error_at(document, place, str(error)) from None
        text = RangeText(choices=value)
    for other in text.unless:
        if other not in given or other == key:
            hint = did_you_mean(other, [name for name in given if name != key])
            raise error_at(
                document,
                (*place, "unless", other),
                f"{other} is no other setting of the space{hint}",
            )
    unless = {
        other: values if isinstance(values, tuple) else (values,)
        for other, values in text.unless.items()
    }
    low, high, step = _bounds(document, key, text, place)
    found = Range(key, low, high, step, text.log, text.choices, tuple(unless.items()))
    if low is not None and found.tidy(low) == found.tidy(high):
        raise error_at(
            document,
            place,
            f"low {low} and high {high} are the same value in three digits; widen the range",
        )
    return found


def _bounds(
    document: Document, key: str, text: RangeText, place: Key
) -> tuple[float | None, float | None, float | None]:
    """low, high and step as the setting takes them: floats where it takes fractions. ConfigError,
    with every mistake, for a value that the setting never has."""
    errors = ErrorList()
    for word, values in (("low", (text.low,)), ("high", (text.high,)), ("choices", text.choices)):
        for value in values or ():
            if value is not None:
                with errors.collected():
                    _check_value(document, key, value, place, word)
    errors.raise_all()
    if text.low is None or text.high is None:
        return None, None, None
    whole = isinstance(text.low, int) and isinstance(text.high, int)
    if whole and _takes(key, text.low + 0.5):  # 1 to 3 of a setting that may be 1.5
        step = None if text.step is None else float(text.step)
        return float(text.low), float(text.high), step
    if whole and isinstance(text.step, float):
        raise error_at(
            document,
            (*place, "step"),
            f"{key} takes whole numbers, and {text.step} is none; write a whole step",
        )
    return text.low, text.high, text.step


def _check_value(document: Document, key: str, value: Any, place: Key, word: str) -> None:
    line = document.place((*place, word))
    try:
        check_value(key, value, line)
    except ConfigError as error:
        fix = ""
        if isinstance(value, float) and value.is_integer() and _takes(key, int(value)):
            fix = f"write {int(value)}"
        name = word if word != "choices" else "choice"
        raise ConfigError(
            f"{name} {shown(value)}: {error.message}", place=line, key=key, fix=fix
        ) from None


def _takes(key: str, value: Any) -> bool:
    """Whether a setting may have a value."""
    try:
        check_value(key, value, Place("search"))
    except ConfigError:
        return False
    return True


def read_enqueued(document: Document, given: Settings, key: Key, space: tuple[Range, ...]) -> Asked:
    """Settings of the file as those of a trial. ConfigError unless they are in the space."""
    given_values = flat(document, given, key)
    by_key = {one.key: one for one in space}

    def wrong(at: Key, message: str) -> ConfigError:
        return ConfigError(message, place=document.place(at), key="enqueue")

    for name, (value, at) in given_values.items():
        if name not in by_key:
            raise wrong(at, f"{name} is not in the space{did_you_mean(name, by_key)}")
        if not by_key[name].has(value):
            text = by_key[name].text
            raise wrong(at, f"{name}: {shown(value)} is not in its range, {text}")
    values = {name: value for name, (value, _) in given_values.items()}
    asked = asked_keys(space, values)
    for name in asked:
        if name not in values:
            raise wrong(key, f"{name} is missing; give it a value")
    for name in values:
        if name not in asked:
            raise wrong(
                key, f"{name} is not asked for beside the other values (unless); leave it out"
            )
    return {one.key: one.tidy(values[one.key]) for one in space if one.key in asked}
