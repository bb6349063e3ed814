"""YAML: what both versions read alike is read, what they do not is refused with its line."""

import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixgrpo.errors import ConfigError, Place
from mixgrpo.settings.yamlfile import MOST_BYTES, dump_yaml, parse_yaml, read_yaml

HERE = Place("--set x")


def refused(text: str | bytes, tmp_path: Path) -> list[str]:
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as raised:
        read_yaml(file)
    messages = [str(one).replace(f"{tmp_path}/", "") for one in raised.value.errors]
    assert all("\n" not in one and len(one) < 300 for one in messages)
    return messages


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("0.50", 0.5),
        ("0x1F", 31),
        ("~", None),
        ("", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        # Texts in YAML 1.2, whatever 1.1 has.
        ("4:00:00", "4:00:00"),
        ("1:30", "1:30"),
        ("y", "y"),
        ("N", "N"),
        ("1_a", "1_a"),
        ("1.2.3", "1.2.3"),
        ("'010'", "010"),
        ('"yes"', "yes"),
        ("nope", "nope"),
        ("[1, off_line]", [1, "off_line"]),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    parsed = parse_yaml(text, HERE)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        *((one, "decimal digits") for one in ("010", "-017", "00", "08", "0_7", "0o10", "0b1")),
        *((one, "decimal digits") for one in ("1_000", "1_0.5", "1_0e3", "0x_1", "-0x1F", "+1_0")),
        *((one, f'write true, or "{one}"') for one in ("yes", "Yes", "on", "ON")),
        *((one, f'write false, or "{one}"') for one in ("no", "NO", "off", "Off")),
        *((one, "quote it") for one in ("2024-01-02", "2001-12-14t21:59:43.10-05:00", "=", "<<")),
    ],
)
def test_what_two_versions_read_differently_is_refused(text: str, fix: str, tmp_path: Path) -> None:
    (message,) = refused(f"# a comment\na: 1\nb: {text}\n", tmp_path)
    assert message.startswith(f"a.yaml:3: {text} is read differently by YAML 1.1 and 1.2; ")
    assert fix in message
    with pytest.raises(ConfigError, match=r"--set x: .* is read differently"):
        parse_yaml(f"[{text}]", HERE)


@pytest.mark.parametrize("key", ["on", "off", "yes", "No", "1", "null", "~", "1e3", "010", "true"])
def test_keys_that_are_no_texts_are_to_be_quoted(key: str, tmp_path: Path) -> None:
    (message,) = refused(f"arms:\n  a: {{}}\n  {key}: {{}}\n", tmp_path)
    assert message.startswith(f"a.yaml:3: the key {key} is read as ")
    assert message.endswith(f'; quote it: "{key}"')
    file = tmp_path / "quoted.yaml"
    file.write_text(f'arms:\n  "{key}": {{}}\n')
    assert read_yaml(file).data == {"arms": {key: {}}}


def test_rows_of_a_published_table_may_be_numbers(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("paper_rows: {15: 20, 0.5: x}\n")
    document = read_yaml(file)
    assert document.data == {"paper_rows": {15: 20, 0.5: "x"}}
    assert str(document.place(("paper_rows", "15"))) == f"{file}:1"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a is given twice; keep one"),
        ("a: {b: , x: 1, c: , x: 2}", 1, "x is given twice; keep one"),
        ("a:\n  b:\n  x: 1\n  c:\n  x: 2", 5, "x is given twice; keep one, or indent each below "),
        ("a: &x {b: 1}\nc:\n  <<: *x", 3, "`<<` merges mappings in YAML 1.1 only; write the keys"),
        ("a: 1\n\tb: 2", 2, "indent with spaces"),
        ("a: 1\n---\nb: 2", 2, "there are several documents"),
        ("a: !!python/object/apply:os.system [ls]", 1, "the tag 'tag:yaml.org,2002:python/object"),
        ("a: !!str 1", 1, "the tag"),
        ("a: !own 1", 1, "the tag"),
        ("? [1, 2]\n: 3", 1, "a key must be a plain word"),
        ("a: 1\n{b: 1}: 3", 2, ""),
        ("?\n: 1", 1, "a key is empty"),
        ("a: *nothing", 1, "found undefined alias 'nothing'"),
        ("a: &x [*x]", 1, "a value contains itself"),
        ("a: 1\nb: {c: 1, c: 2}", 2, "c is given twice"),
        ("a: b: c", 1, "mapping values are not allowed here; indent keys of one section alike"),
        ("s:\n  a:2\n  b: 3", 2, "no space after a:; write `a: ` and then the value"),
        ("a: 1\nb:2\nc: 3", 2, "no space after b:; write `b: ` and then the value"),
        ("u: http://x\n  b: 1", 2, "mapping values are not allowed here; indent"),
        ('a: 1\nb: {c: "d:E}\nf: 1', 2, "a quoted text that begins here has no end; close the"),
        (b"a: 1\nb: \x00", 2, "the character U+0000"),
        *[
            (f"a: 1\nb: x{char} y\nc: 1", 2, f'leave it out, or write "\\u{ord(char):04x}" in')
            for char in "\x85\u2028\u2029"
        ],
        ('a: 1\nb: "x\\0y"', 2, "the character U+0000 cannot be part of a text; leave it out"),
        ('a: 1\nb: {"x\\ud800": 1}', 2, "the character U+D800 cannot be part of a text"),
        (b"a: 1\nb: \xff", 2, "byte 0xff is not UTF-8; save the file as UTF-8"),
        ("a: 1".encode("utf-16"), 1, "is not UTF-8"),
        ("a: 9223372036854775808", 1, "9223372036854775808 is too large for a whole number"),
        ("a: " + "9" * 1_000_000, 1, "a number of 1,000,000 digits is too long"),
        ("a: " + "[" * 100_000, 1, "nested more than 50 deep"),
        ("a: " + "{b: " * 100_000, 1, "nested more than 50 deep"),
        ("- " * 100_000, 1, "nested more than 50 deep"),
    ],
)
def test_what_is_refused_has_its_line(
    text: str | bytes, line: int, words: str, tmp_path: Path
) -> None:
    (message,) = refused(text, tmp_path)
    assert message.startswith(f"a.yaml:{line}: ")
    assert words in message


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    messages = refused("a: 010\nb: yes\non: 1\nc: {d: 1, d: off}\n", tmp_path)
    assert [one.split(":")[1] for one in messages] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("text", ["\ufeffa: 1\n", "a: 1\r\n", "%YAML 1.2\n---\na: 1\n"])
def test_files_of_other_editors_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(text.encode())
    document = read_yaml(tmp_path / "a.yaml")
    assert document.data == {"a": 1}
    assert document.lines["a",] == (3 if text.startswith("%") else 1)


def test_aliases_are_read_and_may_not_multiply(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &x {b: 1}\nc: *x\n")
    assert read_yaml(file).data == {"a": {"b": 1}, "c": {"b": 1}}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 40)
    )
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    (message,) = refused(bomb, tmp_path)
    assert "repeat more than 100,000 values; write less" in message
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_endless_files_are_not_read_to_their_end(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    with big.open("wb") as file:
        os.truncate(file.fileno(), 10**12)  # sparse
    with pytest.raises(ConfigError, match=f"more than {MOST_BYTES:,} bytes"):
        read_yaml(big)
    with pytest.raises(
        ConfigError, match="/dev/zero: cannot be read: is a pipe, a socket or a dev"
    ):
        read_yaml(Path("/dev/zero"))


_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | _texts
    | st.from_regex(r"[-+]?[0-9_:.eEoxb]{1,8}", fullmatch=True)
    | st.sampled_from(["yes", "off", "010", "0o7", "1e3", "<<", "=", "2024-01-01", "~", "null"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "on", "1", "010", "~"]), _plain, max_size=4))
def test_what_is_written_is_read_back_by_both_versions(data: dict[str, Any]) -> None:
    text = dump_yaml(data)
    assert parse_yaml(text, HERE) == data
    assert yaml.safe_load(text) == data


def test_what_ends_a_line_to_yaml_alone_is_written_so_that_it_is_read_back() -> None:
    data = {"a": "x\u2028y\x85", "b\u2029": "é"}
    assert parse_yaml(dump_yaml(data, allow_unicode=True), HERE) == data


def test_what_earlier_versions_wrote_is_written_alike() -> None:
    data = {"a": [1, 1e-5, None, True, "text", "1:30", "yes"], "b": {"c": "0.7", "d": -0.5}}
    assert dump_yaml(data) == yaml.safe_dump(data, sort_keys=False)
