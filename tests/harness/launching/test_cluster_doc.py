"""docs/cluster.md names every setting of Slurm with its default, and its examples are read."""

import json
import re
from pathlib import Path

import pytest

from harness.launching.resources import Slurm, resources
from harness.study.load import load_sweep

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def test_every_setting_is_explained_with_its_default_and_no_other() -> None:
    table = TEXT.split("## What a job asks for")[1].split("\n## ")[0]
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE):
        keys = re.findall(r"`(\w+)`", names)
        values = default.split(", ") if default[0].isdigit() else [default] * len(keys)
        told |= dict(zip(keys, values, strict=True))
    assert told.keys() == Slurm.model_fields.keys()
    for name, field in Slurm.model_fields.items():
        if isinstance(field.default, bool | int | float):
            assert told[name] == f"{json.dumps(field.default)}".removesuffix(".0"), name


def test_the_examples_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, own = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "site.yaml").write_text(site)
    monkeypatch.setenv("MIXGRPO_SLURM", str(tmp_path / "site.yaml"))
    own = own.replace("base: presets/flux.yaml", "window.size: 2")
    (tmp_path / "s.yaml").write_text(f"name: s\nquestion: Which?\nseeds: 1\n{own}")
    found = resources(load_sweep(tmp_path / "s.yaml"))
    assert found["small"] == Slurm(
        partition="gpu",
        account="vision",
        setup=("module load cuda/12.8",),
        sbatch={"mail-type": "FAIL"},
        gpus=1,
        cpus=8,
        memory_gb=64,
        time=720,
    )
    assert (found["large"].processes, found["large"].time, found["large"].sharded) == (
        32,
        720,
        True,
    )
