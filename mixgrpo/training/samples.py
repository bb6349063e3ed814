"""The pictures that a run keeps of its evaluations: samples/<iteration>/<k>.png."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mixgrpo.evaluation.contact_sheet import png
from mixgrpo.files.atomic import flush, write_bytes, write_json
from mixgrpo.files.records import loads


def shown_prompts(folder: Path, prompts: Sequence[str], count: int) -> list[str]:
    """`count` of the prompts, those whose first image is kept.

    The same in every evaluation of the run in `folder`: a picture's number means one prompt.
    """
    listing = folder / "samples" / "prompts.json"
    try:
        listed: list[str] = loads(listing.read_bytes())
        if isinstance(listed, list) and set(listed) <= set(prompts):
            return listed
    except (FileNotFoundError, ValueError, TypeError):
        pass
    # Spread over the prompts, whose neighbours are alike.
    count = min(count, len(prompts))
    chosen = [prompts[i * len(prompts) // count] for i in range(count)]
    listing.parent.mkdir(exist_ok=True)
    write_json(listing, chosen)
    return chosen


def keep_samples(folder: Path, done: int, images: Sequence[Tensor]) -> None:
    """Leave images [3, H, W] as pictures, each whole or not at all."""
    location = folder / "samples" / f"{done:06d}"
    location.parent.mkdir(exist_ok=True)
    location.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        write_bytes(location / f"{k}.png", png(image))
    flush(location)
