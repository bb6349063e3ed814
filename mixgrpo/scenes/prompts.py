"""The grammar of the embedded task's prompts, and which of them are held out.

Three kinds: "a red square", "three green triangles", "a red cross above a blue square".
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import product

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "triangle", "cross")
COUNTS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("above", "below", "left of", "right of")
HELD_OUT_PERCENT = 15

_PLURALS = {"square": "squares", "triangle": "triangles", "cross": "crosses"}


@dataclass(frozen=True)
class Thing:
    """One object: a shape in a colour."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What an image must show, and nothing more."""

    things: tuple[Thing, ...]
    relation: str | None = None
    """Position of the first of two things relative to the second; None: any."""


THINGS = tuple(Thing(colour, shape) for colour, shape in product(COLOURS, SHAPES))


def parse(prompt: str) -> Scene:
    """The scene that `prompt` describes. ValueError, naming the prompt, where there is none.

    Case and spacing count: two texts never mean the same prompt.
    """
    scene = _scenes().get(prompt)
    if scene is None:
        raise ValueError(
            f"{prompt!r} is not a prompt of the scenes; such prompts are 'a red square', "
            "'three green triangles' and 'a red cross above a blue square'"
        )
    return scene


def all_prompts() -> list[str]:
    """Every prompt of the grammar: 12 single things, 36 counts, 528 relations, in this order."""
    return list(_scenes())


def train_prompts() -> list[str]:
    """The prompts that pre-training and GRPO may see."""
    return [p for p in _scenes() if not is_held_out(p)]


def held_out_prompts() -> list[str]:
    """The prompts that nothing is trained on."""
    return [p for p in _scenes() if is_held_out(p)]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is held out. Decided by its text only, so that extending the grammar would
    move no prompt between the sets."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


@cache
def _scenes() -> dict[str, Scene]:
    scenes = {f"a {t.colour} {t.shape}": Scene((t,)) for t in THINGS}
    for (word, number), t in product(COUNTS.items(), THINGS):
        scenes[f"{word} {t.colour} {_PLURALS[t.shape]}"] = Scene((t,) * number)
    for a, relation, b in product(THINGS, RELATIONS, THINGS):
        if a != b:
            text = f"a {a.colour} {a.shape} {relation} a {b.colour} {b.shape}"
            scenes[text] = Scene((a, b), relation)
    return scenes
