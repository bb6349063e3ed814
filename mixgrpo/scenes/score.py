"""Verifiable rewards of the scenes: what an image shows, compared with its prompt.

A pixel has a palette colour if that colour is nearer than the others and black, and at most 0.45
away in RGB. A blob is a 4-connected set of at least 4 pixels of one colour; it has a shape if the
best sprite at the best position overlaps it with an IoU of at least 0.7. A faint residue on the
background is no blob: `palette` notices it, `composition` and `strict` do not.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mixgrpo.scenes.prompts import COLOURS, SHAPES, Scene, Thing, parse
from mixgrpo.scenes.render import PALETTE, SIZE, SPRITE, SPRITES, has_relation

TOLERANCE = 0.45
MIN_IOU = 0.7
MIN_PIXELS = 4
PARTIAL_CREDIT = 0.25
"""Credit of a blob that has either the colour or the shape of a thing, but not both."""

_COLOURS = np.array([(0.0, 0.0, 0.0), *(PALETTE[c] for c in COLOURS)], np.float32)


@dataclass(frozen=True)
class Blob:
    """A connected set of pixels of one colour."""

    colour: str
    shape: str | None
    """None where it resembles no sprite."""
    centre: NDArray[np.float64]
    """(row, column) of the centre of its sprite, or of its pixels where it has no shape."""


def composition(images: Tensor, prompts: list[str]) -> Tensor:
    """How much of each prompt its image shows, in [0, 1]: objects * number * (1 + relation) / 2.

    objects: mean over the prompt's things of 1 for a blob of its colour and shape, 0.25 for a blob
    of its colour or its shape only, 0 for none; blobs are assigned to things for the largest sum.
    number: min / max of the numbers of blobs and of things.
    relation: 1 where the prompt has none, or two matching blobs have it; else 0.

    images [B, 3, 16, 16] in [0, 1], B prompts -> [B] float32. ValueError for an unknown prompt.
    """
    scenes = [parse(p) for p in prompts]
    scores = [_compose(s, b) for s, b in zip(scenes, find_blobs(images), strict=True)]
    return torch.tensor(scores, dtype=torch.float32, device=images.device)


def strict(images: Tensor, prompts: list[str]) -> Tensor:
    """1 where the image shows the whole prompt and no other blob (composition is 1), else 0.

    images [B, 3, 16, 16] in [0, 1], B prompts -> [B] float32. ValueError for an unknown prompt.
    """
    return (composition(images, prompts) == 1).float()


def palette(images: Tensor, prompts: list[str]) -> Tensor:
    """How clean the colours are: mean over pixels of max(0, 1 - d / 0.45).

    d is the distance in RGB to the nearest of black and the four colours. Prompts are ignored.
    images [B, 3, H, W] in [0, 1] -> [B] float32.
    """
    distance, _ = _nearest(_pixels(images))
    closeness = np.maximum(0.0, 1.0 - distance / TOLERANCE).mean((1, 2))
    return torch.from_numpy(closeness.astype(np.float32)).to(images.device)


def find_blobs(images: Tensor) -> list[list[Blob]]:
    """The blobs of each image of [B, 3, 16, 16] in [0, 1]."""
    distance, nearest = _nearest(_pixels(images))
    nearest[distance > TOLERANCE] = 0
    planes = nearest[:, None] == np.arange(1, len(_COLOURS))[:, None, None]
    planes = planes.reshape(-1, SIZE, SIZE)  # image by image, colour by colour
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels = np.asarray(ndimage.label(planes, in_plane)[0])
    sizes = np.bincount(labels.ravel())
    kept = 1 + np.flatnonzero(sizes[1:] >= MIN_PIXELS)
    _, first = np.unique(labels, return_index=True)
    # `first` has no entry for background where an image is full; labels are counted from the end
    plane = first[kept - len(sizes)] // (SIZE * SIZE)
    masks = labels[plane] == kept[:, None, None]
    shapes, centres = _shapes(masks)
    blobs: list[list[Blob]] = [[] for _ in range(len(images))]
    for which, shape, centre in zip(plane, shapes, centres, strict=True):
        image, colour = divmod(int(which), len(COLOURS))
        blobs[image].append(Blob(COLOURS[colour], shape, centre))
    return blobs


def _compose(scene: Scene, blobs: list[Blob]) -> float:
    if not blobs:
        return 0.0
    credit = np.array([[_credit(t, b) for b in blobs] for t in scene.things])
    objects = float(credit[linear_sum_assignment(credit, maximize=True)].sum()) / len(credit)
    number = min(credit.shape) / max(credit.shape)
    relation = 1.0
    if scene.relation is not None:
        first, second = ([b for b in blobs if _credit(t, b) == 1] for t in scene.things)
        pairs = [has_relation(a.centre - b.centre, scene.relation) for a in first for b in second]
        relation = float(any(pairs))
    return float(objects * number * (1 + relation) / 2)


def _credit(thing: Thing, blob: Blob) -> float:
    matches = (blob.colour == thing.colour) + (blob.shape == thing.shape)
    return (0.0, PARTIAL_CREDIT, 1.0)[matches]


def _shapes(masks: NDArray[np.bool_]) -> tuple[list[str | None], NDArray[np.float64]]:
    """Shape (or None) and centre of each mask of [N, 16, 16]."""
    templates, centres = _templates()
    flat = masks.reshape(len(masks), SIZE * SIZE).astype(np.float32)
    common = flat @ templates.T
    iou = common / (flat.sum(1)[:, None] + templates.sum(1) - common)
    best = iou.argmax(1)
    known = iou[np.arange(len(best)), best] >= MIN_IOU
    per_shape = len(centres)
    shapes = [SHAPES[b // per_shape] if k else None for b, k in zip(best, known, strict=True)]
    rows, columns = np.indices((SIZE, SIZE)).reshape(2, -1)
    middle = flat @ np.stack([rows, columns], 1) / flat.sum(1)[:, None]
    return shapes, np.where(known[:, None], centres[best % per_shape], middle)


@cache
def _templates() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Every sprite at every position [shapes * 121, 256], and the centres [121, 2] of these
    positions."""
    side = range(SIZE - SPRITE + 1)
    corners = [(row, column) for row in side for column in side]
    templates = np.zeros((len(SHAPES), len(corners), SIZE, SIZE), np.float32)
    for s, shape in enumerate(SHAPES):
        for k, (row, column) in enumerate(corners):
            templates[s, k, row : row + SPRITE, column : column + SPRITE] = SPRITES[shape]
    return templates.reshape(-1, SIZE * SIZE), np.array(corners) + (SPRITE - 1) / 2


def _pixels(images: Tensor) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = images.detach().float().movedim(1, -1).cpu().numpy()
    return pixels


def _nearest(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Distance to, and index of, the nearest palette colour; [B, H, W] each, index 0 is black."""
    square = ((pixels[..., None, :] - _COLOURS) ** 2).sum(-1)
    nearest = square.argmin(-1)
    return np.sqrt(square.min(-1)), nearest
