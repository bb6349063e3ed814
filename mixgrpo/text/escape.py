"""Text on its way out, one function for each door: what a user or a run wrote is only ever text.

Names, labels, questions, prompts, errors and what servers answer may hold anything. At each door
some of it would be an instruction: an escape sequence to a terminal, a formula to a spreadsheet, a
command to LaTeX, a tag to Markdown. HTML is escaped by Jinja (`harness.reporting.page`), a figure's
text by `harness.reporting.figures`.
"""

import re
import unicodedata
from collections.abc import Iterable

_CONTROL = re.compile(
    # C0 without tab and line feed, DEL and C1; separators that break lines; what turns the
    # direction of writing; halves of surrogate pairs, which no encoding takes; noncharacters.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_PASSWORD = re.compile(r"(?<=://)[^\s'\"]*@")
"""Up to the last @: a password may hold what should have been quoted, a slash or another @."""


def visible(text: str) -> str:
    r"""Control characters as Python writes them, `\x1b`; line ends, tabs and all else as they are.

    What is left can be encoded, keeps its order, and moves no cursor. For terminals, and the first
    step at every other door.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`visible`, with single spaces in place of line ends, tabs and runs of spaces."""
    return " ".join(visible(text).split())


def shortened(text: str, most: int = 60) -> str:
    """`one_line` of at most `most` characters; an ellipsis stands for the rest."""
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def without_passwords(text: str) -> str:
    """URLs in `text` without what stands before their host: `https://...@host`."""
    return _PASSWORD.sub("...@", text)


def csv_cell(text: str) -> str:
    """A cell of text for CSV: an apostrophe before what a spreadsheet would compute."""
    text = one_line(text)
    return f"'{text}" if text.startswith(tuple("=+-@＝＋－＠")) else text


# ---- Markdown (CommonMark and GitHub's tables, strikethrough and mathematics) -----------------

_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def markdown(text: str) -> str:
    """Text inside a line of Markdown, such as a cell of a table.

    Only what could mean something is escaped: intervals in brackets stay as they are.
    """
    text = one_line(text)
    text = re.sub(r"[\\`|$]", r"\\\g<0>", text)
    text = re.sub(r"<(?=[A-Za-z/!?])|&(?=#|[A-Za-z])|\](?=[(\[:])", r"\\\g<0>", text)
    return re.sub(r"([*_~])\1*", _emphasis, text)


def markdown_block(text: str) -> str:
    """Text that begins a paragraph, a heading or an item of a list in Markdown."""
    text = re.sub(r"#+$", lambda end: end[0].replace("#", r"\#"), markdown(text))
    text = re.sub(r"^([#>+*=~-]|\[(?=[ xX^]))", r"\\\1", text)
    return re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", text)


def _emphasis(run: re.Match[str]) -> str:
    """Stars, underscores or tildes, escaped where they could begin an emphasis."""
    before = run.string[run.start() - 1 : run.start()]
    after = run.string[run.end() : run.end() + 1]
    inside_a_word = bool(before) and not (before.isspace() or _is_punctuation(before))
    ends = not after or after.isspace()
    if ends or (inside_a_word and (run[1] == "_" or after in _PUNCTUATION)):
        return run[0]
    return "".join(f"\\{sign}" for sign in run[0])


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"


# ---- LaTeX (pdflatex, without packages) ------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: rf"\{c}" for c in "&%$#_{}"},
    "|": "$|$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    **{
        letter: rf"${name}$"
        for letter, name in (
            *(("α", r"\alpha"), ("β", r"\beta"), ("γ", r"\gamma"), ("δ", r"\delta")),
            *(("ε", r"\epsilon"), ("η", r"\eta"), ("θ", r"\theta"), ("κ", r"\kappa")),
            *(("λ", r"\lambda"), ("μ", r"\mu"), ("π", r"\pi"), ("ρ", r"\rho")),
            *(("σ", r"\sigma"), ("τ", r"\tau"), ("φ", r"\phi"), ("ψ", r"\psi")),
            *(("ω", r"\omega"), ("Δ", r"\Delta"), ("Σ", r"\Sigma")),
        )
    },
}


def latex(text: str) -> str:
    """Text for pdflatex: special characters escaped, Greek letters as mathematics; of what it does
    not know, the accents are left out or the character's name is written."""
    # Where a ligature would make one sign of two, `{}` keeps them apart.
    parts = re.split(r"(?<=-)(?=-)|(?<=')(?=')|(?<=[`!?])(?=`)", one_line(text))
    return "{}".join("".join(map(_latex, part)) for part in parts)


def latex_row(cells: Iterable[str]) -> str:
    r"""The cells of a row, `a & b`. After `\\` or a rule of the row before, a bracket or a star
    would be its argument."""
    row = " & ".join(map(latex, cells))
    return f"{{}}{row}" if row.startswith(("[", "(", "*")) else row


def _latex(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if not plain.strip():
        return f"[{unicodedata.name(character, f'U+{ord(character):04X}').lower()}]"
    return "".join(_LATEX.get(part, part) for part in plain)  # ＄ has become a sign with a meaning
