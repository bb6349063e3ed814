"""Files of somebody else run no code: what they may name, and what --trust allows."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mixgrpo.errors import ConfigError
from mixgrpo.rewards.load import load_reward
from mixgrpo.runs.load import load_run
from mixgrpo.settings.config import OptimizerConfig, RewardsConfig, RunConfig
from mixgrpo.settings.configfile import add_overrides, load_layers
from mixgrpo.settings.trust import check
from mixgrpo.training.optimizer import make_optimizer
from mixgrpo.training.run import run
from tests.mixgrpo import toy

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("it-ran").touch()
class Evil:
    name = "evil"
    def score(self, images, prompts):
        return images.mean((1, 2, 3))
"""


def named(path: str, **options: Any) -> RewardsConfig:
    return RewardsConfig.model_validate(
        {
            "train": {"evil": 1.0},
            "held_out": (),
            "classes": {"evil": path},
            "options": {"evil": options} if options else {},
        }
    )


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("subprocess:Popen", {"args": "touch {}", "shell": True}),
        ("os:system", {"command": "touch {}"}),
        ("subprocess:run", {"args": ("touch", "{}")}),
        ("asyncio.subprocess:subprocess.Popen", {"args": ("touch", "{}")}),
        ("pathlib:Path.touch", {"self": "{}"}),
        ("builtins:open", {"file": "{}", "mode": "w"}),
        ("antigravity:geohash", {}),
        # Reached through a package that is not Python's.
        ("torch.utils.cpp_extension:subprocess.Popen", {"args": ("touch", "{}")}),
        ("mixgrpo.rewards.limit:threading.Thread", {}),
        ("yaml:unsafe_load", {"stream": "!!python/object/apply:os.system ['touch {}']"}),
    ],
)
def test_what_is_no_reward_is_not_called(
    path: str, options: dict[str, Any], tmp_path: Path
) -> None:
    witness = tmp_path / "it-ran"

    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return value.format(witness) if isinstance(value, str) else value

    settings = named(path, **{key: filled(value) for key, value in options.items()})
    with pytest.raises(ConfigError) as refused:
        load_reward("evil", settings)
    assert "\n" not in str(refused.value)
    assert not witness.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("path", ["subprocess.Popen", "os:system", "this.s", "pathlib.Path"])
def test_an_optimizer_is_one_before_it_is_called(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^optimizer\.name "):
        make_optimizer(OptimizerConfig(name=path), [])
    assert "this" not in sys.modules


def test_a_class_without_a_name_or_a_score_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    bodies = {
        "no method score": "name = 'evil'",
        "no name": "def score(self, images, prompts): ...",
        "no class": "",
    }
    for number, (why, body) in enumerate(bodies.items()):
        head = "class Evil:" if body else "def Evil():"
        text = f"{head}\n    {body}\n" if body else f"{head}\n    raise SystemExit\n"
        text += "    def __init__(self): raise SystemExit\n" if body else ""
        (tmp_path / f"evil{number}.py").write_text(text)
        with pytest.raises(ConfigError, match=why):
            load_reward("evil", named(f"evil{number}:Evil"))


@pytest.mark.parametrize("place", ["import", "construction"])
def test_a_system_exit_of_the_users_code_is_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    leaves = "import sys\nsys.exit(0)\n"
    text = EVIL + (leaves if place == "import" else "    def __init__(self): raise SystemExit(0)\n")
    (tmp_path / f"leaves_{place}.py").write_text(text)
    with pytest.raises(ConfigError, match=rf"^evil: leaves_{place}:Evil.* fails: SystemExit: 0 "):
        load_reward("evil", named(f"leaves_{place}:Evil"))


# ---- Whose file it is


def written(folder: Path, **rewards: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = toy.config().model_dump(mode="json")
    config["rewards"] = {"train": {"evil": 1.0}, "held_out": [], **rewards}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "config.yaml"


def trusted(file: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """As a command without --trust reads it."""
    layers = load_layers(file)
    add_overrides(layers, list(overrides))
    config = layers.validate()
    check(config, layers.place, trust=False)
    return config


@pytest.mark.usefixtures("toy_site")
def test_a_configuration_elsewhere_names_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    file = written(theirs, classes={"evil": "evil:Evil"})
    own.mkdir()
    monkeypatch.chdir(own)
    with pytest.raises(ConfigError) as refused:
        trusted(file)
    text = str(refused.value)
    assert text.startswith(f"{file}:1: rewards.classes.evil: names 'evil:Evil', ")
    assert text.endswith("if you know whose it is, add --trust")
    assert load_layers(file).validate().rewards.classes == {"evil": "evil:Evil"}
    # Neither by a link nor as a base is it the user's own.
    (own / "linked").symlink_to(theirs)
    (own / "run.yaml").write_text("base: ../theirs/config.yaml\n")
    for mine in (own / "linked" / "config.yaml", own / "run.yaml"):
        with pytest.raises(ConfigError, match="--trust"):
            trusted(mine)
    # A base that names none, a setting of the command line, and one's own file are no reason.
    (theirs / "base.yaml").write_text("iterations: 7\n")
    (own / "mine.yaml").write_text(
        "base: ../theirs/base.yaml\n"
        "rewards: {train: {evil: 1.0}, classes: {evil: 'evil:Evil'}, held_out: []}\n"
    )
    assert trusted(own / "mine.yaml").iterations == 7
    overrides = ["optimizer.name=lion.Lion"]
    assert trusted(theirs / "base.yaml", overrides).optimizer.name == "lion.Lion"


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {name: evil.Adam}",
        "rewards: {options: {unifiedreward: {login_env: HOME}}}",
        "rewards: {options: {unifiedreward: {urls: ['http://evil'], api_key_env: SECRET}}}",
        "rewards: {options: {unifiedreward: {api_key_env: AWS_SECRET_ACCESS_KEY}}}",
    ],
)
def test_other_ways_to_run_code_or_to_send_a_secret(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"run\.yaml:1: .* add --trust"):
        trusted(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("optimizer: {name: torch.optim.SGD}")
    trusted(tmp_path / "run.yaml")


@pytest.mark.usefixtures("toy_site")
@pytest.mark.parametrize("how", ["link", "base"])
def test_a_run_folder_of_ones_own_takes_no_code_from_elsewhere(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = written(tmp_path / "theirs", classes={"evil": "evil:Evil"})
    (tmp_path / "own" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "own")
    if how == "link":
        Path("run/config.yaml").symlink_to(theirs)
    else:
        Path("run/config.yaml").write_text(f"base: {theirs}\n")
    with pytest.raises(ConfigError, match=r"rewards\.classes\.evil: .*--trust"):
        load_run(Path("run"), 0, trust=False)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A finished run of the toy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(RunConfig.model_validate({**toy.config().model_dump(), "iterations": 1}), folder)
    return folder


@pytest.fixture
def command(tmp_path: Path, toy_site: Path) -> Command:
    """A command that is started in tmp_path / "own"."""
    (tmp_path / "own").mkdir()

    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path / "own",
            env=os.environ | toy.environment(toy_site),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return called


@pytest.mark.parametrize(
    "arguments",
    [
        ["mixgrpo.evaluate", "{run}"],
        ["mixgrpo.generate", "{run}", "--out", "pictures"],
        ["mixgrpo.to_pipeline", "{run}", "--out", "pipeline"],
        ["mixgrpo.train", "{run}/config.yaml", "--out", "new"],
        ["harness.sweep", "{run}/sweep.yaml", "--plan"],
        ["harness.sweep", "{run}/sweep.yaml"],
        ["harness.probe", "{run}/sweep.yaml"],
        ["harness.search", "{run}/search.yaml"],
    ],
)
def test_a_run_folder_of_somebody_else_runs_nothing(
    arguments: list[str], tmp_path: Path, finished: Path, command: Command
) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(finished, theirs)
    (tmp_path / "own" / "evil.py").write_text(EVIL)
    text = (theirs / "config.yaml").read_text()
    config = json.loads(written(tmp_path / "made", classes={"evil": "evil:Evil"}).read_text())
    (theirs / "config.yaml").write_text(text.partition("\n")[0] + "\n" + json.dumps(config))
    (theirs / "sweep.yaml").write_text(
        "name: theirs\nquestion: What?\nbase: config.yaml\nseeds: 1\nprobes: {hybrid: {}}\n"
        "grid: {window.interval: [1, 2]}\n"
    )
    (theirs / "search.yaml").write_text(
        "name: theirs\nquestion: What?\nbase: config.yaml\ntrials: 1\n"
        "space: {window.interval: {low: 1, high: 4}}\n"
    )
    said = command(*(argument.format(run=theirs) for argument in arguments))
    assert said.returncode == 2, said.stderr
    assert said.stderr.startswith("error: ")
    assert said.stderr.count("\n") == 1
    assert "rewards.classes.evil: names 'evil:Evil'" in said.stderr
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == ["evil.py"]


def test_trusted_it_runs_and_code_in_the_run_folder_itself_is_not_trusted_by_standing_in_it(
    tmp_path: Path, finished: Path, command: Command
) -> None:
    theirs = tmp_path / "own" / "theirs"
    shutil.copytree(finished, theirs)
    text = (theirs / "config.yaml").read_text()
    config = json.loads(
        written(tmp_path / "made", classes={"evil": "theirs.evil:Evil"}).read_text()
    )
    (theirs / "config.yaml").write_text(text.partition("\n")[0] + "\n" + json.dumps(config))
    (theirs / "evil.py").write_text(EVIL)
    refused = command("mixgrpo.evaluate", "theirs")
    assert refused.returncode == 2
    assert "--trust" in refused.stderr
    assert not (theirs / "it-ran").exists()
    said = command("mixgrpo.evaluate", "theirs", "--trust")
    assert said.returncode == 0, said.stderr
    assert (theirs / "it-ran").exists()
