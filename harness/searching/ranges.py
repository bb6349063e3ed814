"""The space of a search file -> ranges; its settings -> those of a trial. Errors name the line."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.searching.schema import Part, RangeText
from harness.searching.space import Asked, Range, Settings, asked_keys, settings_in_order
from harness.sweepfile import did_you_mean
from mixgrpo.configfile import Document, Key, check_key, known_keys
from mixgrpo.errors import ConfigError


def flat(
    document: Document, settings: Mapping[str, Any], place: Key, prefix: str = ""
) -> dict[str, tuple[Any, Key]]:
    """Settings, nested or dotted, by dotted key, each with its key in the file."""
    found: dict[str, tuple[Any, Key]] = {}
    for name, value in settings.items():
        dotted, here = f"{prefix}{name}", (*place, name)
        section = any(key.startswith(f"{dotted}.") for key in known_keys())
        if section and isinstance(value, dict):
            inner = flat(document, value, here, f"{dotted}.")
        else:
            _check_setting(document, dotted, here)
            inner = {dotted: (value, here)}
        for key in inner.keys() & found.keys():
            raise ConfigError(f"{document.place(here)}: {key} is given twice; keep one")
        found |= inner
    return found


def _check_setting(document: Document, dotted: str, key: Key) -> None:
    check_key(dotted, document.place(key))
    if dotted == "seed":
        raise ConfigError(f"{document.place(key)}: seed: give `seeds:` of the search")


def read_space(document: Document, parts: Sequence[tuple[Part, Key]]) -> tuple[Range, ...]:
    given: dict[str, tuple[Any, Key]] = {}
    for part, prefix in parts:
        for key, value in (part.space or {}).items():
            place = (*prefix, "space", key)
            _check_setting(document, key, place)
            given[key] = (value, place)
    if not given:
        raise ConfigError(
            f"{document.place(('space',))}: space: is empty; give ranges by key, such as "
            "{window.size: {low: 1, high: 8}}"
        )
    found = []
    for key, (value, place) in given.items():
        text = value if isinstance(value, RangeText) else RangeText(choices=value)
        for other in text.unless:
            if other not in given or other == key:
                hint = did_you_mean(other, [name for name in given if name != key])
                raise ConfigError(
                    f"{document.place((*place, 'unless', other))}: {key}: unless: {other} is no "
                    f"other setting of the space{hint}"
                )
        unless = {
            other: values if isinstance(values, tuple) else (values,)
            for other, values in text.unless.items()
        }
        found.append(
            Range(
                key, text.low, text.high, text.step, text.log, text.choices, tuple(unless.items())
            )
        )
    ordered = settings_in_order(found)
    if ordered is None:
        raise ConfigError(
            f"{document.place(('space',))}: space: settings wait for each other by `unless`; break "
            "the circle"
        )
    return ordered


def read_enqueued(document: Document, given: Settings, key: Key, space: tuple[Range, ...]) -> Asked:
    """Settings of the file as those of a trial. ConfigError unless they are in the space."""
    given_values = flat(document, given, key)
    by_key = {one.key: one for one in space}
    for name, (value, at) in given_values.items():
        if name not in by_key:
            hint = did_you_mean(name, by_key)
            raise ConfigError(f"{document.place(at)}: enqueue: {name} is not in the space{hint}")
        if not by_key[name].has(value):
            raise ConfigError(
                f"{document.place(at)}: enqueue: {name}: {value!r} is not in its range, "
                f"{by_key[name].text}"
            )
    values = {name: value for name, (value, _) in given_values.items()}
    asked = asked_keys(space, values)
    for name in asked:
        if name not in values:
            raise ConfigError(f"{document.place(key)}: enqueue: {name} is missing; give it a value")
    for name in values:
        if name not in asked:
            raise ConfigError(
                f"{document.place(key)}: enqueue: {name} is not asked for beside the other values "
                "(unless); leave it out"
            )
    return {one.key: one.tidy(values[one.key]) for one in space if one.key in asked}
