"""Sweep files whose synthetic runs the tests of frames load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.study.load import load_sweep
from harness.study.spec import Sweep
from tests.harness.synthetic import write_runs

SET = {"iterations": 24, "evaluation.every": 12}


def write_study(
    folder: Path,
    name: str,
    arms: Mapping[str, Any] | None = None,
    grid: Mapping[str, list[Any]] | None = None,
    seeds: int | list[int] = 3,
    **more: Any,
) -> Sweep:
    """A sweep file `folder`/<name>.yaml."""
    about: dict[str, Any] = {"name": name, "question": f"What of {name}?", "seeds": seeds}
    about |= {"set": SET, "measure": "composition"}
    about |= {"arms": arms} if arms else {"grid": grid or {"window.interval": [3, 5, 15]}}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(about | more))
    return load_sweep(file)


def made(folder: Path, study: str, effects: Mapping[str, float] | None = None, **how: Any) -> Sweep:
    """A study with finished runs in `folder`/runs."""
    sweep = write_study(folder, study, **how)
    write_runs(sweep, folder / "runs", effects)
    return sweep


def claim(place: Path) -> None:
    """Give the synthetic runs in a folder the first line that a trainer writes."""
    for folder in place.iterdir():
        file = folder / "config.yaml"
        header = f"# schema 1, run {folder.name.rpartition('-')[2]}\n"
        file.write_text(header + file.read_text())
