"""Pictures of images [3, H, W] in [0, 1]: one as PNG, many as a contact sheet.

A sheet has a row per prompt and columns in labelled groups, which diffusers' `make_image_grid` has
not: it knows no labels, gaps or rows of different heights. The same images and texts give the same
bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mixgrpo.text.escape import visible

SMALL, LARGE = 96, 256
"""Pixels of a cell: smaller images are enlarged by a whole number, larger ones reduced."""
TEXT_WIDTH = 220
"""Pixels of the column of prompts."""
FONT, LINE, PARAGRAPH = 14, 18, 8
MARGIN, GAP, GROUP_GAP = 16, 4, 20
INK, RULE = (20, 20, 20), (150, 150, 150)


@dataclass(frozen=True)
class Column:
    """Images of every prompt that were made in one way."""

    group: str
    """What its neighbours may have in common, such as "iteration 40, p_mix 80 %"."""
    label: str
    """What distinguishes it from them, such as "seed 3"."""
    images: Tensor
    """[prompts, 3, H, W] in [0, 1]."""


def png(image: Tensor) -> bytes:
    """An image [3, H, W] in [0, 1] as PNG, 8 bits per channel."""
    return _encoded(_picture(image))


def contact_sheet(title: Sequence[str], prompts: Sequence[str], columns: Sequence[Column]) -> bytes:
    """A PNG with a row per prompt and the columns side by side, all in full text.

    `title`: paragraphs above it. Neighbouring columns of the same group share its label.
    """
    groups = [(name, list(members)) for name, members in groupby(columns, lambda c: c.group)]
    cells = [[[_cell(i) for i in c.images] for c in members] for _, members in groups]
    width = max(cell.width for group in cells for column in group for cell in column)
    height = max(cell.height for group in cells for column in group for cell in column)
    spans = [len(members) * (width + GAP) - GAP for _, members in groups]
    heads = [_wrapped(name, span) for (name, _), span in zip(groups, spans, strict=True)]
    labels = [[_wrapped(c.label, width) for c in members] for _, members in groups]
    texts = [_wrapped(prompt, TEXT_WIDTH) for prompt in prompts]

    left = MARGIN + TEXT_WIDTH + GROUP_GAP
    total = left + sum(spans) + GROUP_GAP * (len(groups) - 1) + MARGIN
    intro = [line for paragraph in title for line in _wrapped(paragraph, total - 2 * MARGIN)]
    y_heads = MARGIN + len(intro) * LINE + GROUP_GAP
    y_labels = y_heads + max(map(len, heads)) * LINE + GAP
    y = y_labels + max(len(lines) for group in labels for lines in group) * LINE + GAP
    rows = [max(height, len(lines) * LINE + PARAGRAPH) for lines in texts]
    sheet = Image.new("RGB", (total, y + sum(rows) + GAP * (len(rows) - 1) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)

    _write(pen, MARGIN, MARGIN, intro)
    x = left
    starts = []
    for span, head, group in zip(spans, heads, labels, strict=True):
        _write(pen, x, y_labels - GAP - len(head) * LINE, head)
        pen.line((x, y_labels - GAP, x + span - 1, y_labels - GAP), fill=RULE)
        for k, lines in enumerate(group):
            _write(pen, x + k * (width + GAP), y_labels, lines)
        starts.append(x)
        x += span + GROUP_GAP
    for row, lines in enumerate(texts):
        _write(pen, MARGIN, y, lines)
        for x, group_cells in zip(starts, cells, strict=True):
            for k, column in enumerate(group_cells):
                sheet.paste(column[row], (x + k * (width + GAP), y))
        y += rows[row] + GAP
    return _encoded(sheet)


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def _cell(image: Tensor) -> Image.Image:
    picture = _picture(image)
    longest = max(picture.size)
    if longest < SMALL:
        factor = SMALL // longest
        size = (picture.width * factor, picture.height * factor)
        return picture.resize(size, Image.Resampling.NEAREST)
    picture.thumbnail((LARGE, LARGE), Image.Resampling.LANCZOS)
    return picture


def _encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships with: the same on every machine, and not Latin alone."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    # Without the layout engine that a machine may or may not have.
    return ImageFont.truetype(file, FONT, layout_engine=ImageFont.Layout.BASIC)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is longer than a line is broken."""
    font, lines = _font(), [""]
    for word in visible(text).split():
        line = f"{lines[-1]} {word}".strip()
        if font.getlength(line) <= width:
            lines[-1] = line
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _write(pen: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str]) -> None:
    for i, line in enumerate(lines):
        pen.text((x, y + i * LINE), line, fill=INK, font=_font())
