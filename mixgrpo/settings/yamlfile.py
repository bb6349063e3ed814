"""Reads and writes YAML files of plain data, with the line of each key.

The language is YAML 1.2 (the core schema, https://yaml.org/spec/1.2.2/#103-core-schema): `1e-4` is
a number, `4:00:00` a text. Scalars that common readers of YAML 1.1 interpret differently (`010`,
`1_000`, `yes`, `2024-01-01`, `<<`) are errors, so that no file is ambiguous. Size, nesting and
aliases have limits, so that no file takes all memory.

The file is long since the grammar, the limits and the error message of every mistake belong
together.
"""

import difflib
import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from mixgrpo.errors import ConfigError, ErrorList, Place, shown
from mixgrpo.files.regular import read_regular
from mixgrpo.text.escape import shortened

Key = tuple[str | int, ...]

_NO_KEY = ("mapping values are not allowed here", "could not find expected ':'")
"""PyYAML's messages, sometimes for the line after, where a text is in place of a key with a
value."""

MOST_BYTES = 10_000_000
"""The most bytes of a file. A sweep of 10,000 named arms has less than a tenth of it."""
MOST_DEPTH = 50
"""The deepest nesting of lists and mappings."""
MOST_ALIASED = 100_000
"""The most values that all aliases (`*name`) of a file may repeat."""
MOST_INTEGER = 2**63 - 1
MOST_DIGITS = 100
"""The most characters of a number."""

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""Characters that end a line in YAML 1.1, which PyYAML reads, but in no editor."""

_NUMBER_KEYS = {"paper_rows"}
"""Mappings whose keys may be numbers; elsewhere keys are texts."""

_TAG = "tag:yaml.org,2002:"
_TWO_WAYS = "two-ways"
"""The tag of scalars that YAML 1.1 and YAML 1.2 read differently."""

_RESOLVERS = {
    _TWO_WAYS: r"[-+]?0[0-9_]+|[-+]?0[bo][0-7_]+|[-+]0x[0-9a-fA-F_]+|0x_*[0-9a-fA-F]*_[0-9a-fA-F_]*"
    r"|[-+]?(?=[^_]*_)[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|[-+]?(?=[^_]*_)\.[0-9_]+"
    r"|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"
    r"|\d{4}-\d{1,2}-\d{1,2}(([Tt]|[ \t]+)\d{1,2}:.*)?|<<|=",
    f"{_TAG}null": r"~|null|Null|NULL|",
    f"{_TAG}bool": r"true|True|TRUE|false|False|FALSE",
    f"{_TAG}int": r"[-+]?[0-9]+|0x[0-9a-fA-F]+",
    f"{_TAG}float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Text -> nodes. yaml.MarkedYAMLError for what is too deep, too much, or tagged."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = self._count = self._aliased = 0
        self._sizes: dict[int, int] = {}
        """The number of values in a node, by its id."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:  # the node is not complete yet
                raise _Refused("a value contains itself; write it out", event.start_mark)
            self._aliased += self._sizes[id(node)]
            self._count += self._sizes[id(node)]
            if self._aliased > MOST_ALIASED:
                raise _Refused(
                    f"aliases (*{event.anchor}) repeat more than {MOST_ALIASED:,} values; write "
                    "less",
                    event.start_mark,
                )
            return node
        if event.tag is not None:
            raise _Refused(
                f"the tag {shown(event.tag)} is not read; write the value without it, and a text "
                "in quotes",
                event.start_mark,
            )
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _Refused(f"is nested more than {MOST_DEPTH} deep; write less", event.start_mark)
        before = self._count
        self._count += 1
        node = super().compose_node(parent, index)
        self._sizes[id(node)] = self._count - before
        self._depth -= 1
        return node


class _Refused(yaml.MarkedYAMLError):
    """Valid YAML that is not accepted here."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Dumper(yaml.SafeDumper):
    """Writes plain data so that YAML 1.1 and 1.2 read the same."""

    def analyze_scalar(self, scalar: str) -> Any:
        analysis = super().analyze_scalar(scalar)
        if _LINE_ENDS.search(scalar):  # only double quotes escape them
            analysis.allow_single_quoted = analysis.allow_block = False
        return analysis


for _tag, _pattern in _RESOLVERS.items():
    _first = {"null": ["~", "n", "N", ""], "bool": list("tTfF")}.get(_tag.removeprefix(_TAG))
    _first = _first or list("-+.0123456789yYnNoO<=")
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


@dataclass(frozen=True)
class Document:
    """One YAML mapping with the line of each of its keys."""

    file: str
    data: dict[str, Any]
    lines: dict[Key, int]

    def place(self, key: Key = ()) -> Place:
        """The place of a key, or of the nearest enclosing key that is known."""
        while key and key not in self.lines:
            key = key[:-1]
        return Place(self.file, self.lines[key] if key else None)


def read_yaml(path: Path) -> Document:
    """Read a YAML file that holds one mapping. ConfigError, with every mistake, for another one."""
    text = _read_text(path)
    reading = _Reading(str(path))
    data = reading.read(text)
    if not isinstance(data, dict):
        raise ConfigError("expected a mapping of keys to values", place=Place(str(path)))
    return Document(str(path), data, reading.lines)


def parse_yaml(text: str, place: Place) -> Any:
    """The value of a YAML text of the command line. ConfigError at `place` for invalid YAML, with
    the messages of `read_yaml`."""
    reading = _Reading(place.file, place)
    return reading.read(text)


def dump_yaml(data: Any, **options: Any) -> str:
    """Plain data as YAML with the keys in their order; `read_yaml` reads it back unchanged."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, **options)
    return text


def _read_text(path: Path) -> str:
    place = Place(str(path))
    try:
        raw = read_regular(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no such file{nearest_file(path)}", place=place) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) == errno.EFBIG:
            raise ConfigError(f"{reason}; is it YAML?", place=place) from None
        raise ConfigError(f"cannot be read: {reason}", place=place) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = Place(str(path), raw.count(b"\n", 0, error.start) + 1)
        raise ConfigError(
            f"cannot be read as text: byte 0x{raw[error.start]:02x} is not UTF-8",
            place=place,
            fix="save the file as UTF-8",
        ) from None


class _Reading:
    """Turns texts into plain data and collects the lines of keys and all errors."""

    def __init__(self, file: str, place: Place | None = None) -> None:
        """`place`: the place of all errors, for a text without lines."""
        self.file, self._place = file, place
        self.lines: dict[Key, int] = {}
        self.errors = ErrorList()

    def read(self, text: str) -> Any:
        if wrong := _LINE_ENDS.search(text):
            code = ord(wrong[0])
            raise self._error(
                text.count("\n", 0, wrong.start()) + 1,
                f"the character U+{code:04X} ends a line to some readers of YAML",
                f'leave it out, or write "\\u{code:04x}" in double quotes',
            )
        try:
            node = _Loader(text).get_single_node()
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            code = error.character if isinstance(error.character, int) else ord(error.character)
            raise self._error(line, f"not valid YAML: the character U+{code:04X}") from None
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error, text) from None
        data = self._value(node, ()) if node is not None else None
        self.errors.raise_all()
        return data

    def _error(self, line: int, message: str, fix: str = "") -> ConfigError:
        return ConfigError(message, place=self._place or Place(self.file, line), fix=fix)

    @staticmethod
    def _glued(text: str, line: int) -> tuple[int, str] | None:
        """Line and name of a key at or just before `line` whose value follows its colon without a
        space, so that YAML reads key and value as one text that continues in the next line."""
        lines = text.splitlines()[:line]
        for number in range(len(lines), max(0, len(lines) - 2), -1):
            if match := re.fullmatch(r"\s*([A-Za-z_][\w.-]*):[^\s:/][^:]*", lines[number - 1]):
                return number, match[1]
        return None

    def _syntax_error(self, error: yaml.MarkedYAMLError, text: str) -> ConfigError:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = shortened(error.problem or "", 200)
        if isinstance(error, _Refused):
            return self._error(line, problem)
        fix = ""
        if r"'\t'" in problem:
            fix = "indent with spaces"
        elif error.context == "expected a single document in the stream":
            problem, fix = "there are several documents", "leave one, without `---` after it"
        elif problem == "found unexpected end of stream" and error.context_mark:
            line = error.context_mark.line + 1
            problem, fix = "a quoted text that begins here has no end", "close the quote"
        elif problem in _NO_KEY and (glued := self._glued(text, line)):
            line, key = glued
            problem, fix = f"no space after {key}:", f"write `{key}: ` and then the value"
        elif problem == _NO_KEY[0]:
            fix = "indent keys of one section alike, and quote a text that has `: ` in it"
        return self._error(line, f"not valid YAML: {problem}", fix)

    def _value(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            values = []
            for index, item in enumerate(node.value):
                self.lines[(*key, index)] = item.start_mark.line + 1
                values.append(self._value(item, (*key, index)))
            return values
        assert isinstance(node, yaml.ScalarNode)
        value = None
        with self.errors.collected():
            value = self._scalar(node, line)
        return value

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        for index, (name_node, value_node) in enumerate(node.value):
            line = name_node.start_mark.line + 1
            with self.errors.collected():
                name = self._name(name_node, line, bool(key) and key[-1] in _NUMBER_KEYS)
                here = (*key, str(name))
                if name in data:
                    empty = "" if node.flow_style else _empty_before(node.value[:index], str(name))
                    fix = f", or indent each below the empty key above it, here {empty}"
                    message = f"{shown_key(name)} is given twice"
                    raise self._error(line, message, "keep one" + (fix if empty else ""))
                self.lines[here] = line
                data[name] = self._value(value_node, here)
        return data

    def _name(self, node: yaml.Node, line: int, may_be_number: bool) -> str | int | float:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(line, "a key must be a plain word, not a list or a mapping")
        text = shortened(node.value)
        if node.tag == f"{_TAG}str":
            return self._text(node.value, line)
        if node.value == "<<":
            raise self._error(
                line,
                "`<<` merges mappings in YAML 1.1 only",
                "write the keys out, or name a `base`",
            )
        kind = node.tag.removeprefix(_TAG)
        if kind in ("int", "float") and may_be_number:
            return self._scalar(node, line)  # type: ignore[no-any-return]
        if not text:
            raise self._error(line, "a key is empty", 'write a word before the colon, or ""')
        meaning = {
            "null": "nothing",
            "bool": "true or false",
            "int": "a number",
            "float": "a number",
        }.get(kind, "something else than a name by some readers of YAML")
        raise self._error(line, f"the key {text} is read as {meaning}", f'quote it: "{text}"')

    def _text(self, text: str, line: int) -> str:
        """`text`, unless it has characters that no path or encoding takes, by an escape such as
        "\\0"."""
        wrong = re.search("[\0\ud800-\udfff]", text)
        if wrong:
            raise self._error(
                line,
                f"the character U+{ord(wrong[0]):04X} cannot be part of a text",
                "leave it out",
            )
        return text

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return self._text(text, line)
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == _TWO_WAYS:
            raise self._error(
                line, f"{shortened(text)} is read differently by YAML 1.1 and 1.2", _plainly(text)
            )
        if len(text) > MOST_DIGITS:
            raise self._error(line, f"a number of {len(text):,} digits is too long")
        if kind == "int":
            value = int(text, 16 if text.startswith("0x") else 10)
            if abs(value) > MOST_INTEGER:
                raise self._error(line, f"{shortened(text)} is too large for a whole number")
            return value
        return float(re.sub(r"\.(?=[iInN])", "", text))  # .inf is inf to Python


def _empty_before(pairs: list[tuple[yaml.Node, yaml.Node]], name: str) -> str:
    """The last key without a value that comes after the key `name`; "" for none."""
    for key, value in reversed(pairs):
        if key.value == name:
            break
        if value.tag == f"{_TAG}null":
            return shown_key(key.value)
    return ""


def _plainly(text: str) -> str:
    """How to write a scalar that two versions of YAML read differently."""
    if text.lower() in ("yes", "on", "no", "off"):
        value = "true" if text.lower() in ("yes", "on") else "false"
        return f'write {value}, or "{text}" in quotes for the text'
    if text[0] in "<=" or re.match(r"\d{4}-", text):
        return f'quote it: "{shortened(text)}"'
    return "write a number in decimal digits, without 0, 0b, 0o before it and _ in it; quote a text"


def shown_key(key: object) -> str:
    """A key as error messages show it: short, in one line."""
    return shortened(str(key))


def nearest_file(path: Path) -> str:
    """A hint at a YAML file that may be meant: in the folder of `path`, or below the working folder
    by its name without ending (`smoke` for sweeps/smoke.yaml); "" for none."""
    beside = [p for p in _yaml_files(path.parent, ["*"]) if p.name != path.name]
    below = _yaml_files(Path(), ["*/*", "*/*/*"]) if path.parent == Path() else []
    for files in (beside, below):
        near = difflib.get_close_matches(path.stem, [p.stem for p in files], n=1)
        if near:
            return f"; did you mean {next(p for p in files if p.stem == near[0])}?"
    return ""


def _yaml_files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (p for pattern in patterns for p in folder.glob(f"{pattern}.y*ml"))
    return sorted(p for p in islice(files, 2000) if not p.parts[0].startswith("."))
