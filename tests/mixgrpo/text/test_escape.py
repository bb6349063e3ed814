"""At every door a text means itself: judged by what stands behind the door, not by the escapes."""

import io
import re
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mixgrpo.text import escape

SIGNS = st.text(alphabet="ab 1.-=+@#*_~`|<>[](){}!&;:/\\$%^\"'?,\n\t", max_size=24)
TEXTS = SIGNS | st.text(max_size=24)
NASTY = [
    "=cmd|' /C calc'!A0",
    "[2cm] a label",
    "* starred",
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](http://h/x.png)",
    "a | b `c` *d* __e__ ~~f~~",
    "&lt;b&gt; &#x41; &copy",
    "pay $x_$ now, $5 and $9",
    r"\input{/etc/passwd} \\ \ ",
    "＄＼％＿｛｝",
    "\x1b]0;title\x07\x1b[31mred",
    "\u202egnp.exe",
    "\ud83d",
    "字 🙂 é ½",
    "- item",
    "1. item",
    "# head #",
    "[ ] task",
    "[a]: http://h",
    "---",
    "++--''``?`!`",
    "a*b*c **d** _e_f_",
]
EXAMPLES = pytest.mark.parametrize("text", NASTY)


def plain(text: str) -> str:
    return escape.one_line(text)


def shown_by_markdown(source: str) -> list[str]:
    """The texts that a renderer shows, one for each block; an error for anything but text."""
    blocks = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source):
        if token.type == "inline":
            assert {child.type for child in token.children or []} <= {"text"}, source
            blocks.append("".join(child.content for child in token.children or []))
        else:
            assert token.type.split("_")[0] in STRUCTURE, source
    return blocks


STRUCTURE = {"paragraph", "heading", "bullet", "list", "table", "thead", "tbody", "tr", "th", "td"}


def check_markdown(text: str) -> None:
    block, cell, shown = escape.markdown_block(text), escape.markdown(text), plain(text)
    expected = [shown] if shown else []
    assert shown_by_markdown(block) == expected
    assert shown_by_markdown(f"# {block}") == [shown]
    assert shown_by_markdown(f"* {block}\n* end") == [*expected, "end"]
    table = shown_by_markdown(f"| {cell} | b |\n|---|---|\n| {cell} | c |")
    assert table == [shown, "b", shown, "c"]


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    check_markdown(text)


@EXAMPLES
def test_markdown_shows_what_would_mean_something(text: str) -> None:
    check_markdown(text)


def test_markdown_leaves_what_means_nothing() -> None:
    for text in ("−0.1 [−0.2, 0.0]", "MixGRPO-Flash* is worse", "NFE_old < 3 & p > 0.05"):
        assert escape.markdown_block(text) == text


@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(list(NASTY))
def test_csv_reads_back_equal_but_for_the_guard(texts: list[str]) -> None:
    cells = [escape.csv_cell(text) for text in texts]
    stream = pd.DataFrame({"label": cells, "n": -1.5}).to_csv(index=False, lineterminator="\n")
    read = pd.read_csv(io.StringIO(stream), keep_default_na=False, skip_blank_lines=False)
    assert list(read["n"]) == [-1.5] * len(texts)
    for text, cell in zip(texts, map(str, read["label"].astype(object)), strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        if not re.fullmatch(r"[\d.]*", plain(text)):  # read as a number where all are
            assert cell.removeprefix("'") == plain(text).removeprefix("'")


@given(TEXTS)
@example("".join(map(chr, range(0x300))))
def test_visible_moves_no_cursor_and_can_be_encoded(text: str) -> None:
    for shown in (escape.visible(text), escape.one_line(text)):
        shown.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert escape.visible("plain é 字 🙂\n\ttext") == "plain é 字 🙂\n\ttext"


def test_visible_shows_what_was_there() -> None:
    assert escape.visible("\x1b[31mred\r\x07") == r"\x1b[31mred\r\x07"
    assert escape.visible("a\u202eb\ud83d") == r"a\u202eb\ud83d"


def test_passwords_in_urls_are_left_out() -> None:
    said = escape.without_passwords("GET https://me:s3/cr:e@t@host:80/v1 failed, 'ftp://t@h'")
    assert said == "GET https://...@host:80/v1 failed, 'ftp://...@h'"
    assert escape.without_passwords("a@b.c at http://host/x") == "a@b.c at http://host/x"


def test_latex() -> None:
    assert escape.latex("a_b & 5 % \\ {x} τ −1") == (
        r"a\_b \& 5 \% \textbackslash{} \{x\} $\tau$ $-$1"
    )
    assert escape.latex("w ≥ 2 | ŵ 字") == r"w $\geq$ 2 $|$ w [cjk unified ideograph-5b57]"
    assert escape.latex("½ “x”").isascii()
    assert escape.latex("＄x") == r"\$x"
    assert escape.latex("report --all") == "report -{}-all"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex here")
def test_pdflatex_takes_any_text(tmp_path) -> None:
    texts = [*NASTY, "".join(map(chr, range(0x250))), *_drawn(TEXTS, 150)]
    rows = [escape.latex_row([text, f"<{number}>"]) for number, text in enumerate(texts)]
    lines = "\n".join(f"{row} \\\\\n\\midrule" for row in rows)
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage{longtable}\\begin{document}\n"
        f"\\begin{{longtable}}{{p{{8cm}}r}}\n\\toprule\n{lines}\n\\end{{longtable}}\n"
        f"\\section*{{{escape.latex(' '.join(NASTY))}}}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    if shutil.which("pdftotext"):
        subprocess.run(["pdftotext", "-layout", "t.pdf"], cwd=tmp_path, check=True)
        shown = (tmp_path / "t.txt").read_text()
        assert all(f"<{number}>" in shown for number in range(len(texts)))
        assert "[2cm] a label" in shown
        assert "* starred" in shown


def _drawn(strategy: st.SearchStrategy[str], count: int) -> list[str]:
    """Texts of a strategy, the same in every run: one document holds them all."""
    texts: list[str] = []

    @given(strategy)
    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    def take(text: str) -> None:
        texts.append(text)

    take()
    return texts
