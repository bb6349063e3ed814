"""Runs of the toy, and what must be the same for any two of one configuration."""

import json
from pathlib import Path
from typing import Any

from mixgrpo import train
from tests.mixgrpo import toy

SMALL = toy.config(objective={"kl_weight": 0.01}, sampler={"tail_ratio": 0.5, "order": 2})
LONG = toy.config(iterations=60, evaluation={"every": 20}, output={"checkpoint_every": 7})


def lines(file: Path) -> list[dict[str, Any]]:
    """Every line of a jsonl file; all must be whole and strict JSON."""
    text = file.read_text()
    assert text.endswith("\n")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be the same for two runs of one configuration."""

    def reproducible(data: dict[str, Any]) -> str:
        # The digests are of what has timings in it.
        timed = ("seconds", "memory", "digests")
        kept = {k: v for k, v in data.items() if not k.startswith(timed)}
        return json.dumps(kept)

    newest = max(p for p in (folder / "checkpoints").iterdir() if p.name.isdigit())

    def contents(name: str) -> dict[str, bytes]:
        return {
            str(f.relative_to(folder)): f.read_bytes()
            for f in (folder / name).rglob("*")
            # A writer that was killed may leave its hidden temporary file.
            if f.is_file() and not f.name.startswith(".")
        }

    return {
        "metrics": [reproducible(line) for line in lines(folder / "metrics.jsonl")],
        "eval": [reproducible(line) for line in lines(folder / "eval.jsonl")],
        "result": reproducible(json.loads((folder / "result.json").read_text())),
        "config": (folder / "config.yaml").read_bytes(),
        "newest": newest.name,
        "tensors": {f.name: f.read_bytes() for f in newest.glob("*.safetensors")},
        "manifest": reproducible(json.loads((newest / "manifest.json").read_text())),
        "samples": contents("samples"),
        "scores": contents("scores"),
    }


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith(".partial") or ".tmp" in p.name[-4:]]


def iterations(folder: Path) -> int:
    """Lines of metrics that a run in `folder` has written, whole or not."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def stopped_at(folder: Path, done: int) -> None:
    assert train.run(SMALL, folder, lambda: iterations(folder) >= done) == "stopped"


def flip(place: Path) -> None:
    """Change one bit of a checkpoint's weights."""
    file = place / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
