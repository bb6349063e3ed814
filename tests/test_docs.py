"""What docs/extending.md and docs/run-folder.md say is what there is, and it works."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import parquet

from harness.study.load import load_sweep
from mixgrpo import train
from mixgrpo.catalogue import registry, rewards, scenes
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import load_config
from tests.mixgrpo import toy

DOCS = toy.ROOT / "docs"
OWN = toy.ROOT / "examples" / "own"


# ---- docs/extending.md


def test_the_code_in_the_text_is_that_of_the_example() -> None:
    text = (DOCS / "extending.md").read_text()
    blocks = re.findall(
        r"^`([\w./]+)`[^\n]*:\n\n```(?:python|toml|yaml)\n(.*?)^```$", text, re.M | re.S
    )
    assert len(blocks) == len(re.findall(r"^```(?:python|toml|yaml)$", text, re.M))
    files = [p for p in OWN.rglob("*") if p.suffix in (".py", ".toml", ".yaml")]
    assert dict(blocks) == {str(p.relative_to(OWN)): p.read_text() for p in files}


@pytest.fixture
def own_site(tmp_path: Path) -> Path:
    """The example's metadata as its installation writes it."""
    project = tomllib.loads((OWN / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "\n".join(
            line
            for group, points in project["entry-points"].items()
            for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
        )
    )
    return site


def test_the_example_trains_by_the_command(tmp_path: Path, own_site: Path) -> None:
    path = os.pathsep.join([toy.environment(own_site)["PYTHONPATH"], str(OWN)])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mixgrpo.train", "examples/own/run.yaml"),
            *("--out", str(tmp_path / "run"), "--set", "iterations=2"),
        ],
        env={**toy.environment(own_site), "PYTHONPATH": path},
        cwd=toy.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "likeness 0.6" in done.stderr
    assert (tmp_path / "run" / "weights" / "weights.safetensors").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["groups_without_variance"] for line in lines] == [0, 0]


def test_the_example_learns_and_offers_what_the_text_says(
    tmp_path: Path, own_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (OWN, own_site):
        monkeypatch.syspath_prepend(place)

    def after(name: str, *settings: str) -> float:
        folder = tmp_path / name
        train.run(load_config(OWN / "run.yaml", list(settings)), folder)
        result = json.loads((folder / "result.json").read_text())
        return float(result["after"]["likeness"])

    learned = after("learned", "iterations=120")
    assert learned > 0.75
    weights = tmp_path / "learned" / "weights" / "weights.safetensors"
    again = after("again", "iterations=1", f"model.checkpoint={weights}")
    assert again == pytest.approx(learned, abs=0.02)
    for name, settings in {
        "lora": ["model.train=lora", "model.lora_targets=[enter, leave]"],
        "bf16": ["compute.precision=bf16"],
        "recomputed": ["compute.gradient_checkpointing=true"],
        "reference": ["objective.kl_weight=0.1"],
        "blocks": ["rollout.block=5"],
    }.items():
        assert after(name, "iterations=2", *settings) == pytest.approx(0.633, abs=0.01)
    assert (tmp_path / "lora" / "weights" / "pytorch_lora_weights.safetensors").exists()


# ---- docs/rewards.md


def test_the_reward_in_the_text_is_trained_on(tmp_path: Path) -> None:
    text = (DOCS / "rewards.md").read_text().split("## One of your own")[1]
    [code], [settings] = (re.findall(rf"```{k}\n(.*?)```", text, re.S) for k in ("python", "yaml"))
    (tmp_path / "warmth.py").write_text(code)
    small = {"iterations": 1, "evaluation": {"prompts": 2, "steps": 2, "images_per_prompt": 1}}
    small |= {"sampler": {"steps": 5}, "rollout": {"prompts": 1, "group_size": 4}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(small) + settings)
    done = subprocess.run(
        [sys.executable, "-m", "mixgrpo.train", "run.yaml", "--out", "run"],
        env={**os.environ, "PYTHONPATH": str(toy.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "reward_warmth_mean" in lines(tmp_path / "run" / "metrics.jsonl")[0]


def test_every_reward_and_option_is_explained_and_no_other() -> None:
    text = (DOCS / "rewards.md").read_text()
    first, second = re.findall(r"(?:^\|.*\n)+", text, re.M)
    named = {n for row in first.splitlines()[2:] for n in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(rewards.BUILT_IN)
    explained: dict[str, set[str]] = {name: set() for name in named}
    weighted = {"hps", "pickscore", "imagereward", "clipscore", "aesthetic"}
    for row in second.splitlines()[2:]:
        options, of = (re.findall(r"`(\w+)`", cell) for cell in row.split("|")[1:3])
        for name in of or weighted:
            explained[name] |= set(options)
    for name, path in rewards.BUILT_IN.items():
        maker = registry.load("", {name: path}, name)
        own = set() if name in scenes.REWARDS else set(inspect.signature(maker).parameters)
        assert explained[name] == own, name


# ---- docs/models.md


def test_the_sweep_in_the_text_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / "models.md").read_text().split("## Methods compared on FLUX")[1]
    sweep = re.findall(r"```yaml\n(.*?)```", text, re.S)[0]
    shutil.copytree(toy.ROOT / "sweeps" / "presets", tmp_path / "presets")
    shutil.copytree(toy.ROOT / "examples" / "prompts", tmp_path / "prompts")
    (tmp_path / "flash.yaml").write_text(sweep)
    monkeypatch.chdir(tmp_path)
    found = load_sweep(tmp_path / "flash.yaml")
    assert [run.config.sampler.tail_ratio for run in found.runs[:3]] == [1.0, 0.4, 0.2]


def test_the_presets_are_all_explained() -> None:
    table = (DOCS / "models.md").read_text() + (DOCS / "training.md").read_text()
    for preset in (toy.ROOT / "sweeps" / "presets").glob("*.yaml"):
        assert f"`{preset.stem}`" in table or preset.stem == "scenes"


# ---- docs/run-folder.md


def tables(title: str) -> list[list[str]]:
    """The first column of every table below a heading, without its head."""
    text = (DOCS / "run-folder.md").read_text()
    section = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n?)+", section, re.M)
    return [[row.split("|")[1].strip() for row in t.splitlines()[2:]] for t in found]


def keys(title: str, rewards: list[str]) -> set[str]:
    """The keys that the table under a heading lists, for these rewards."""
    [column] = tables(title)
    names = [cell.strip("`") for cell in column]
    assert len(set(names)) == len(names)
    return {
        name.replace("<name>", reward)
        for name in names
        for reward in (rewards if "<name>" in name else [""])
    }


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A run with everything that is measured, one that moves its window."""
    place = tmp_path_factory.mktemp("documented") / "run"
    config: RunConfig = toy.config(objective={"kl_weight": 0.1})
    assert train.run(config, place) == "finished"
    return place


def test_every_key_of_a_run_is_explained_and_no_other(folder: Path) -> None:
    metrics, evals = lines(folder / "metrics.jsonl"), lines(folder / "eval.jsonl")
    assert set().union(*metrics) == keys("metrics.jsonl", ["brightness"])
    assert set().union(*evals) == keys("eval.jsonl", ["brightness", "contrast"])
    result = json.loads((folder / "result.json").read_text())
    assert set(result) == keys("result.json", [])


def test_every_column_of_the_scores_is_explained(folder: Path) -> None:
    explained = keys("scores/", ["brightness", "contrast"])
    for file in (folder / "scores").iterdir():
        assert set(parquet.read_schema(file).names) == explained


def test_every_row_has_a_meaning() -> None:
    for line in (DOCS / "run-folder.md").read_text().splitlines():
        if line.startswith("| `"):
            assert line.endswith(". |"), line


def test_every_file_of_a_run_is_explained(folder: Path) -> None:
    always, sometimes = (
        {name for cell in column for name in re.findall(r"`([^`]+)`", cell)}
        for column in tables("Files")
    )
    found = {
        re.sub(r"\d+\.png$", "<k>.png", re.sub(r"/\d{6}(?=[/.])", "/<iteration>", name))
        for p in folder.rglob("*")
        if p.is_file()
        for name in [str(p.relative_to(folder))]
    }
    assert always <= found
    assert found - always <= sometimes


def test_the_outcome_is_what_the_text_says(folder: Path) -> None:
    """Sums, means and places of the first and last evaluation."""
    result = json.loads((folder / "result.json").read_text())
    metrics, evals = lines(folder / "metrics.jsonl"), lines(folder / "eval.jsonl")
    assert (folder / "config.yaml").read_text().split("\n")[0].endswith(result["hash"])
    for key in ("seconds_total", "evaluations_computed", "backward_computed"):
        assert result[key] == pytest.approx(sum(line[key] for line in metrics))
    for key in ("nfe_rollout", "nfe_train"):
        assert result[key] == sum(line[key] for line in metrics) / len(metrics)
    for moment, line in (("before", evals[0]), ("after", evals[-1])):
        assert result[moment] == {
            name: line[f"reward_{name}_mean"] for name in ("brightness", "contrast")
        }


def test_all_checkpoints_can_be_kept(tmp_path: Path, toy_site: Path) -> None:
    text = (DOCS / "run-folder.md").read_text()
    [setting] = set(re.findall(r"--set (output\.checkpoints_kept=\d+)", text))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy.settings()))
    config = load_config(tmp_path / "toy.yaml", [setting])
    assert config.output.checkpoint_every == 1
    train.run(config, tmp_path / "run")
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["000001", "000002", "000003", "000004"]
