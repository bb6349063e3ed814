"""Errors about the keys of a sweep or search file, each with file, line, key and fix."""

import difflib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from types import NoneType
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mixgrpo.errors import ConfigError, ErrorList, all_errors, shown
from mixgrpo.settings.config import RunConfig, Section
from mixgrpo.settings.keys import check_key, is_section, known_keys
from mixgrpo.settings.layers import as_tuples, check_value
from mixgrpo.settings.yamlfile import Document, Key
from mixgrpo.text.suggest import RUN, did_you_mean, nearest_setting, plain, slurm_wish

UnknownKey = Callable[[Document, Key], ConfigError]
"""Makes the error for an unknown key."""

F = TypeVar("F", bound=Section)


def checked(
    document: Document,
    schema: type[F],
    word: str,
    synonyms: Mapping[str, str],
    unknown: UnknownKey,
) -> F:
    """The file's content as `schema`. ConfigError with every mistake. `word`: what errors call such
    a file; `synonyms`: words that users write for its keys."""
    try:
        return schema.model_validate(as_tuples(document.data))
    except ValidationError as error:
        words = {**synonyms, **schema.model_fields}
        wrong = _explain_all(document, error, word, words, unknown)
    raise all_errors([*wrong, *wrong_settings(document, schema, word)])


def wrong_settings(
    document: Document, schema: type[Section], word: str = "sweep"
) -> list[ConfigError]:
    """The mistakes in the names and values of single settings, anywhere in a file."""
    errors = ErrorList()
    for key, dotted, value in _settings(document):
        with errors.collected():
            check_setting(document, dotted, key, schema, word)
            check_value(dotted, value, document.place(key))
    return errors.errors


def _settings(document: Document) -> Iterator[tuple[Key, str, Any]]:
    """Every setting of the runs anywhere in a file: key in the file, dotted key, value."""
    profiles = document.data.get("profiles")
    parts: list[tuple[Key, Any]] = [((), document.data)]
    if isinstance(profiles, dict):
        parts += [(("profiles", str(name)), part) for name, part in profiles.items()]
    for prefix, part in parts:
        if not isinstance(part, dict):
            continue
        yield from _dotted((*prefix, "set"), part.get("set"))
        grid, arms = part.get("grid"), part.get("arms")
        for name, values in grid.items() if isinstance(grid, dict) else ():
            for value in values if isinstance(values, list) else ():
                yield (*prefix, "grid", str(name)), str(name), value
        space = part.get("space")
        for name, values in space.items() if isinstance(space, dict) else ():
            if isinstance(values, dict):
                values = [v for k in ("low", "high") if (v := values.get(k)) is not None] + (
                    values["choices"] if isinstance(values.get("choices"), list) else []
                )
            for value in values if isinstance(values, list) else ():
                yield (*prefix, "space", str(name)), str(name), value
        for name, arm in arms.items() if isinstance(arms, dict) else ():
            if isinstance(arm, dict):
                words = {k for k in arm if k in ARM_WORDS or wrong_word_of_arm(str(k))}
                settings = {k: v for k, v in arm.items() if k not in words}
                yield from _dotted((*prefix, "arms", str(name)), settings)


ARM_WORDS = ("base", "label", "slurm")
"""The keys of an arm beside its settings."""


def _may_belong_to_arm(key: str) -> bool:
    """Whether a key is one that stands below an arm's name."""
    known = is_section(key) or key in (*ARM_WORDS, "set")
    return known or nearest_setting(key, known_keys()) is not None


def wrong_word_of_arm(key: str) -> str:
    """What is wrong with a misspelt key of an arm; empty for a key of an arm or a setting."""
    if plain(key) == "set":
        return "an arm's settings need no `set:`; write them below the arm's name"
    near = difflib.get_close_matches(plain(key), ARM_WORDS, n=1, cutoff=0.7)
    return f"unknown key; did you mean {near[0]}?" if near and key not in ARM_WORDS else ""


def _dotted(key: Key, settings: Any, prefix: str = "") -> Iterator[tuple[Key, str, Any]]:
    for name, value in settings.items() if isinstance(settings, dict) else ():
        here, dotted = (*key, str(name)), f"{prefix}{name}"
        if is_section(dotted) and isinstance(value, dict):
            yield from _dotted(here, value, f"{dotted}.")
        else:
            yield here, dotted, value


def _explain_all(
    document: Document,
    error: ValidationError,
    word: str,
    words: Collection[str],
    unknown: UnknownKey,
) -> list[ConfigError]:
    """Every error of a file, in the order of its lines. `words`: its keys and their synonyms."""
    # A union reports an error for each member: the one deepest in the file is the useful one.
    by_key: dict[Key, ErrorDetails] = {}
    missing = []
    for details in error.errors():
        if details["type"] == "missing":
            missing.append(details)
        else:
            key = file_key(document, details["loc"])
            if key not in by_key or by_key[key]["type"].endswith("_type"):
                by_key[key] = details
    outer = {key[:n] for key in by_key for n in range(len(key))}
    errors = []
    for key, details in by_key.items():
        # Under `profiles:` a key of the file may stand where a profile's name belongs.
        at = key[:2] if key[:1] == ("profiles",) and {*key[1:2]} & {*words} else key
        if details["type"] in _STRAY and (empty := empty_before(document, at, by_key, words)):
            errors.append(beside_empty(document, at, empty))
        elif key not in outer:
            is_unknown = details["type"] == "extra_forbidden"
            errors.append(
                unknown(document, key) if is_unknown else _explain(document, key, details)
            )
    return [*errors, *(_missing_key(document, e, word) for e in missing)]


_STRAY = ("extra_forbidden", "dict_type", "model_type")
"""Errors of keys that are indented wrongly."""

_HOLDS: dict[str, tuple[type, ...]] = {
    "set": (object,),
    "slurm": (object,),
    "grid": (list,),
    "space": (list, dict),
    "arms": (dict, NoneType),
    "profiles": (dict, NoneType),
    "probes": (dict, NoneType),
    "paper_rows": (str, int, float),
}
"""The types of what may stand below a key of a file."""


def empty_before(
    document: Document, key: Key, wrong: Container[Key] = (), words: Container[str] = ()
) -> str:
    """The empty key below which `key`, an error where it is, should have been indented: the one
    before it, with only `wrong` keys in between. "" where there is none, or where `key` may be one
    of `words`."""
    *outer, last = key
    beside: Any = document.data
    for part in outer:
        beside = beside.get(part) if isinstance(beside, dict) else None
    if not isinstance(beside, dict) or last not in beside:
        return ""
    value, names, named = beside[last], list(beside), outer[-1:] and outer[-1] in _HOLDS
    if outer[-1:] == ["arms"] and not _may_belong_to_arm(str(last)):
        return ""
    if not named and plain(str(last)) in words and not isinstance(value, dict):
        return ""
    for name in reversed(names[: names.index(last)]):
        here = (*outer, name)
        if beside[name] is None and document.place(here) != document.place(key):
            stray = named or here in wrong
            return str(name) if stray or isinstance(value, _HOLDS.get(str(name), ())) else ""
        if here not in wrong:
            break
    return ""


def _explain(document: Document, key: Key, error: ErrorDetails) -> ConfigError:
    kind, given = error["type"], shown(error["input"])
    if kind == "value_error":
        message = str(error["ctx"]["error"])
    elif (
        kind == "string_pattern_mismatch" or (kind == "string_too_long" and key)
    ) and "measure" not in key:
        message = (
            f"{given} cannot be part of a folder's name; use up to 64 letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit"
        )
    elif "seeds" in key and "confirm" not in key:
        message = (
            f"{given} is not a seed; give a count of at least 1, or a list of whole numbers from "
            "0, such as [0, 1, 2]"
        )
    elif kind == "tuple_type":
        message = f"expected a list of values, such as [1, 2], not {given}"
    elif kind in ("dict_type", "model_type"):
        space = "{low: 1, high: 8} or a list of choices"
        message = f"expected {space if 'space' in key else 'keys with values'}, not {given}"
    elif kind == "too_short":
        message = "is empty; give at least one value, or leave the key out"
    elif kind == "literal_error":
        message = f"{given} is none of {error['ctx']['expected']}"
    else:
        message = f"{error['msg'].replace('Input should be', 'expected')}, not {given}"
    return error_at(document, key, message)


def error_at(document: Document, key: Key, message: str, fix: str = "") -> ConfigError:
    """An error about a key of the file."""
    return ConfigError(message, place=document.place(key), key=".".join(map(str, key)), fix=fix)


def beside_empty(document: Document, key: Key, empty: str) -> ConfigError:
    """The error of a key that should be indented below an `empty` one."""
    message = f"stands beside `{empty}:`, which is empty"
    return error_at(document, key, message, f"indent it below `{empty}:`")


def _missing_key(document: Document, error: ErrorDetails, word: str) -> ConfigError:
    key, missing = file_key(document, error["loc"]), str(error["loc"][-1])
    message = f"this key is missing; every {word} has a {missing}"
    return ConfigError(message, place=document.place(key), key=".".join(map(str, (*key, missing))))


def misplaced_setting(name: str, words: Collection[str]) -> tuple[str, str] | None:
    """The message and the fix for a key of a file that is a setting of its runs or of their jobs;
    None for other keys, and for `words`, the keys of the file and their synonyms."""
    word = plain(name)
    if word in words:
        return None
    if word in RunConfig.model_fields or word in known_keys():
        return "is a setting of the runs", "write it below `set:`"
    if word in RUN or any(key.endswith(f".{word}") for key in known_keys()):
        meant = nearest_setting(name, known_keys())
        return "unknown key", f"did you mean {meant}? Write it below `set:`"
    wish = slurm_wish(name, known_keys())
    return ("unknown key", f"did you mean {wish}? Write it below `slurm:`") if wish else None


def unknown_key(
    document: Document,
    key: Key,
    known: Iterable[str],
    synonyms: Mapping[str, str],
    elsewhere: tuple[str, str] | None = None,
) -> ConfigError:
    """The error for an unknown key. `elsewhere`: what `misplaced_setting` returns."""
    if elsewhere is not None:
        return error_at(document, key, *elsewhere)
    return error_at(document, key, f"unknown key{did_you_mean(str(key[-1]), known, synonyms)}")


def file_key(document: Document, location: tuple[str | int, ...]) -> Key:
    """The part of pydantic's location that is in the file: unions add names to it."""
    key: Key = ()
    for part in location:
        if (*key, part) in document.lines or (*key, str(part)) in document.lines:
            key = (*key, part if (*key, part) in document.lines else str(part))
    return key


def check_setting(
    document: Document, dotted: str, key: Key, schema: type[Section], word: str = "sweep"
) -> None:
    """ConfigError unless `dotted`, which the file has at `key`, is a setting that arms may set."""
    fields = schema.model_fields.keys() - RunConfig.model_fields.keys()
    if dotted in fields:
        message = f"is a key of the {word} file, not a setting of its runs; indent it less"
        raise error_at(document, key, message)
    if dotted == "seed":
        raise error_at(document, key, f"is not a setting of an arm; give `seeds:` of the {word}")
    of_arm = key[-3:-2] == ("arms",) and (
        f"{key[-2]}.{dotted}" in known_keys() or key[-2] in (*ARM_WORDS, "set")
    )
    if of_arm and (empty := empty_before(document, key[:-1])):
        raise beside_empty(document, key[:-1], empty)
    check_key(dotted, document.place(key))
