"""Prompts from files: the published formats, and what must not be lost or altered in silence."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixgrpo.errors import ConfigError
from mixgrpo.files.prompts import prompts_digest, read_prompts

PROMPTS = ["a red fox, asleep", 'a sign that says "open"', "ein Fuchs im Schnee, 雪"]

Write = Callable[[Path, list[str]], None]


def hpdv2_test(file: Path, prompts: list[str]) -> None:
    """test.json as the README of zhwang/HPDv2 describes it."""
    rows = [
        {
            "prompt": prompt,
            "image_path": ["00001.jpg", "00002.jpg"],
            "rank": [1, 2],
            "raw_annotations": [{"rank": [1, 2], "user_hash": "f00"}],
        }
        for prompt in prompts
    ]
    file.write_text(json.dumps(rows))


def pick_a_pic(file: Path, prompts: list[str]) -> None:
    """The columns of yuvalkirstain/pickapic_v2 that stand around `caption`."""
    frame = pd.DataFrame({"best_image_uid": [f"u{i}" for i in range(len(prompts))]})
    frame["caption"] = prompts
    frame["jpg_0"] = [b"\xff\xd8\xff"] * len(prompts)
    frame["label_0"] = 0.5
    frame.to_parquet(file)


def table(separator: str, header: list[str], row: Callable[[str], list[str]]) -> Write:
    def write(file: Path, prompts: list[str]) -> None:
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter=separator)
            writer.writerows([header, *map(row, prompts)])

    return write


FORMATS: dict[str, tuple[str, Write]] = {
    "text": ("p.txt", lambda f, p: f.write_text("\n".join(p) + "\n", "utf-8") and None),
    "HPDv2 benchmark": ("anime.json", lambda f, p: f.write_text(json.dumps(p)) and None),
    "HPDv2 test": ("test.json", hpdv2_test),
    "HPDv2 benchmark, all styles": (
        "all.json",
        lambda f, p: f.write_text(json.dumps({"anime": p[:1], "photo": p[1:]})) and None,
    ),
    "strings in JSON lines": (
        "p.jsonl",
        lambda f, p: f.write_text("".join(json.dumps(x) + "\n" for x in p)) and None,
    ),
    "GenEval": (
        "metadata.jsonl",
        lambda f, p: (
            f.write_text(
                "\n".join(json.dumps({"tag": "two_object", "include": [], "prompt": x}) for x in p)
            )
            and None
        ),
    ),
    "CSV": ("p.csv", table(",", ["id", "text"], lambda p: ["1", p])),
    "PartiPrompts": (
        "PartiPrompts.tsv",
        table(
            "\t", ["Prompt", "Category", "Challenge", "Note"], lambda p: [p, "Arts", "Basic", ""]
        ),
    ),
    "Pick-a-Pic": ("test-00000-of-00001.parquet", pick_a_pic),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompts_and_the_same_digest(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(PROMPTS), "utf-8")
    file_name, write = FORMATS[name]
    file = tmp_path / file_name
    write(file, PROMPTS)
    assert read_prompts(file) == PROMPTS
    assert prompts_digest(file) == prompts_digest(plain)


def test_of_several_names_the_prompt_comes_first_then_the_caption(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "t", "Caption": "c", "prompt": "p"}\n{"text": "t", "CAPTION": "c"}\n')
    assert read_prompts(file) == ["p", "c"]
    file = tmp_path / "p.csv"
    file.write_text("text,caption,prompt\nt,c,p\n")
    assert read_prompts(file) == ["p"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_byte_order_marks_line_ends_and_blank_lines_are_no_prompts(
    ending: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes(b"\xef\xbb\xbf" + ending.join([" one ", "", "  ", "two"]).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_prompts(file) == ["one", "two"]
    file = file.with_suffix(".csv")
    file.write_bytes(b"\xef\xbb\xbf" + ending.join(["caption", "one", "two", ""]).encode())
    assert read_prompts(file) == ["one", "two"]


def test_a_prompt_keeps_what_a_lenient_reader_would_cut(tmp_path: Path) -> None:
    """Separators that str.splitlines splits at, and newlines in a quoted field."""
    text = tmp_path / "p.txt"
    odd = "a\x0bb\x1cc\x85d\u2028e"
    text.write_text(odd, "utf-8")
    assert read_prompts(text) == [odd]
    rows = tmp_path / "p.csv"
    rows.write_text('prompt\n" two\nlines, one ""prompt"" "\n')
    assert read_prompts(rows) == [' two\nlines, one "prompt" ']


def test_more_prompts_than_the_released_code_keeps_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("".join(f"prompt {i}\n" for i in range(60_000)))
    assert len(read_prompts(file)) == 60_000


def test_repeated_and_empty_prompts_are_left_out_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(["b", "a", "b", "", None, "b", "c"]))
    with pytest.warns(UserWarning, match="are left out") as said:
        assert read_prompts(file) == ["b", "a", "c"]
    assert [str(w.message) for w in said] == [
        f"{file}: 2 of its 5 prompts repeat an earlier one and are left out; 3 remain",
        f"{file}: 2 of its 7 entries have an empty prompt and are left out",
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"", "has no prompt"),
        ("p.txt", b"\n \n", "has no prompt"),
        ("p.json", b"[]", "has no prompt"),
        ("p.csv", b"prompt\n", "has no prompt"),
        ("p.txt", b"one\ntwo\nth\0ree\n", "line 3: is not UTF-8 text; save the file as UTF-8"),
        ("p.txt", b"\xef\xbb\xbfone\nt\xe9\n", "line 2: is not UTF-8"),
        ("p.txt", "one\ntwo\n".encode("utf-16"), "line 1: is not UTF-8"),
        ("p.json", b'["one",\n"two"\n', "line 3: is not JSON"),
        ("p.json", b'{"prompt": "one"}\n{"prompt": "two"}\n', "end the file's name in .jsonl"),
        ("p.json", b'"one"', "expected a list of prompts, not str"),
        ("p.json", b'{"prompt": "one"}', "prompt: expected a list of prompts, not str"),
        ("p.json", b'["one", 2]', "entry 2: expected a prompt as text, not 2"),
        ("p.json", b'["one", {"label": "two"}]', "entry 2: an object without prompt"),
        ("p.json", b'["one", "\\ud800"]', "entry 2: has a character that is no text"),
        ("p.json", b'["\\u0000"]', "entry 1: has a character that is no text"),
        ("p.json", b"[" * 100_000, "nested too deeply"),
        ("p.jsonl", b'"one"\n\n{"prompt": "two"\n', "line 3: is not JSON"),
        ("p.jsonl", b'{"caption": ["one"]}', "line 1: expected a prompt as text, not ['one']"),
        ("p.csv", b"one\ntwo\n", "no column prompt or caption or text among one"),
        ("p.csv", b"id,prompt\n1,a cat\n2,a red, blue cat\n", "line 3: has 3 fields"),
        ("p.csv", b"id,prompt\n1\n", "line 2: has 1 fields, the first line has 2"),
        ("p.csv", b'prompt\n"open" signs\n', "line 2: "),
        ("p.csv", b'prompt\n"open\n', "put a prompt with quotes in it between quotes"),
        ("p.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_prompt_is_an_error_with_its_place(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_prompts(file)
    assert str(error.value).startswith(f"{file}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_parquet_without_a_column_of_prompts_names_the_columns(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pd.DataFrame({"label": [1], "url": ["x"]}).to_parquet(file)
    with pytest.raises(ConfigError, match="among label, url"):
        read_prompts(file)


def test_a_file_that_is_not_there_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.txt: no such file of prompts"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ConfigError, match="is a folder"):
        prompts_digest(tmp_path)


def test_the_digest_follows_the_prompts_and_their_order(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    seen = []
    for text in ("one\ntwo\n", "two\none\n", "one two\n"):
        file.write_text(text)
        os.utime(file, ns=(len(seen), len(seen)))  # also where the clock is too coarse
        seen.append(prompts_digest(file))
    assert len(set(seen)) == 3
    assert seen[0] == hashlib.sha256(b'["one", "two"]').hexdigest()


def test_the_digest_of_a_file_that_stays_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.txt"
    file.write_text("one\n")
    first = prompts_digest(file)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert prompts_digest(file) == first
    assert read_prompts(file) == ["one"]


def test_reading_prompts_imports_nothing_heavy() -> None:
    code = (
        "import sys, mixgrpo.files.prompts, mixgrpo.models.embeddings;"
        "print([m for m in ('torch', 'pyarrow', 'pandas', 'numpy', 'safetensors')"
        " if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")).filter(
            lambda text: bool(text.strip())
        ),
        min_size=1,
        unique=True,
    )
)
def test_what_json_and_csv_write_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "p.json").write_text(json.dumps(prompts, ensure_ascii=False), "utf-8")
    (folder / "p.jsonl").write_text("\n".join(json.dumps({"text": p}) for p in prompts))
    table(",", ["prompt", "n"], lambda p: [p, "1"])(folder / "p.csv", prompts)
    for file in sorted(folder.iterdir()):
        assert read_prompts(file) == prompts
