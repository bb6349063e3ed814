"""Draws a scene: 6 x 6 sprites on a black 16 x 16 image, at random admissible positions."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from mixgrpo.scenes.prompts import Scene

SIZE = 16
"""Height and width of an image in pixels."""
SPRITE = 6
"""Height and width of a sprite in pixels."""
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
}

_DRAWN = {
    "square": ("######",) * 6,
    "triangle": ("..##..", "..##..", ".####.", ".####.", "######", "######"),
    "cross": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
}
SPRITES: dict[str, NDArray[np.bool_]] = {
    shape: np.array([[c == "#" for c in row] for row in rows]) for shape, rows in _DRAWN.items()
}


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """One image [3, 16, 16] in [0, 1], all admissible placements equally likely."""
    options = admissible_placements(len(scene.things), scene.relation)
    image = np.zeros((3, SIZE, SIZE), np.float32)
    for thing, (row, column) in zip(scene.things, options[rng.integers(len(options))], strict=True):
        box = image[:, row : row + SPRITE, column : column + SPRITE]
        box[:, SPRITES[thing.shape]] = np.array(PALETTE[thing.colour], np.float32)[:, None]
    return image


def has_relation(offset: NDArray[np.float64], relation: str) -> bool:
    """Whether a thing is `relation` another thing whose centre it is `offset` (rows, columns) away
    from.

    It must be unambiguous: at least 4 pixels on the relation's axis, and more than on the other.
    """
    down, right = float(offset[0]), float(offset[1])
    along, across = {
        "above": (-down, right),
        "below": (down, right),
        "left of": (-right, down),
        "right of": (right, down),
    }[relation]
    return along >= 4 and along > abs(across)


@cache
def admissible_placements(number: int, relation: str | None) -> NDArray[np.intp]:
    """Every admissible placement [K, number, 2] of upper left corners (row, column).

    Sprites lie inside the image with at least one pixel between any two of their boxes; the first
    of two has the relation to the second, if there is one.
    """
    side = np.arange(SIZE - SPRITE + 1)
    corners = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    apart = (np.abs(corners[:, None] - corners[None]) > SPRITE).any(-1)
    chosen = np.arange(len(corners))[:, None]
    for _ in range(number - 1):
        allowed = apart[chosen].all(1)
        if relation is None:  # the things are equal: one order of each set is enough
            allowed &= np.arange(len(corners)) > chosen[:, -1:]
        which, added = np.nonzero(allowed)
        chosen = np.concatenate([chosen[which], added[:, None]], 1)
    placements = corners[chosen]
    if relation is not None:
        offsets = (placements[:, 0] - placements[:, 1]).astype(np.float64)
        placements = placements[[has_relation(offset, relation) for offset in offsets]]
    return placements
