"""What only a job would find is found at the plan; a command that is refused leaves no file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launching import preflight
from harness.searching.file import load_search
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError
from tests.harness.lab import SEARCHED

REWARDS = """\
import sys
print("noise that nobody asked for")
class Good:
    name = "good"
    def __init__(self, scale=1.0): raise RuntimeError("is not made at a plan")
    def score(self, images, prompts): return images.mean((1, 2, 3))
class Bare:
    name = "bare"
class Other(Good):
    name = "other"
def needs(argument): ...
import torch
class Keeps(torch.optim.SGD):
    def step(self):
        self.state[self.param_groups[0]["params"][0]]["memory"] = [1]
class Leaves(torch.optim.SGD):
    def step(self): sys.exit(0)
"""
PROMPTS = "a red square\na blue square\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, beside which own code and prompts lie."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "mine.py").write_text(REWARDS)
    (own / "dies.py").write_text(
        "import os, sys\nsys.stderr.write('a last word\\n')\nos._exit(3)\n"
    )
    (own / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (own / "waits.py").write_text("import time\ntime.sleep(600)\n")
    (own / "needs_gpu.py").write_text("raise RuntimeError('Found no NVIDIA driver')\n")
    (own / "prompts.txt").write_text(PROMPTS)
    (own / "other.txt").write_text(PROMPTS + "a photo of a cat\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(own))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SEARCHED, str(own)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MIXGRPO_SLURM", str(own / "site.yaml"))
    (own / "site.yaml").write_text("# nothing\n")
    return tmp_path / "here"


def sweep_text(*settings: str) -> str:
    lines = "".join(f"  {line}\n" for line in settings)
    return (
        f"name: toy\nquestion: Which?\nset:\n{lines}grid: {{window.interval: [1, 2]}}\nseeds: 1\n"
    )


def refusal(desk: Path, *settings: str, here: bool = True) -> tuple[str, list[str]]:
    """What the checks say of a sweep with these settings, and what they warn of."""
    file = desk.parent / "own" / "toy.yaml"
    file.write_text(sweep_text(*settings))
    said: list[str] = []
    try:
        sweep = load_sweep(file)
        named = [(run.config, sweep.layers[run.arm]) for run in sweep.runs]
        preflight.check_code(named, here, said.append)
    except ConfigError as error:
        return "\n".join(map(str, error.errors)).replace(f"{file.parent}/", ""), said
    return "", said


OWN = "rewards: {{classes: {{{0}: '{1}'}}, held_out: [{0}]}}"
REFUSED = {
    OWN.format(
        "a", "nope:Nope"
    ): "toy.yaml:5: rewards.classes.a: nope:Nope: there is no module nope",
    OWN.format("a", "mine:Nope"): "toy.yaml:5: rewards.classes.a: mine:Nope fails: AttributeError",
    OWN.format("bare", "mine:Bare"): "rewards.classes.bare: mine:Bare has no method score",
    OWN.format("a", "mine:Other"): "rewards.classes.a: its class is named other; give it the",
    OWN.format("a", "mine:needs"): "rewards.classes.a: mine:needs is no class",
    OWN.format("a", "mine:PROMPTS"): "rewards.classes.a: mine:PROMPTS fails: AttributeError",
    OWN.format("a", "subprocess:Popen"): "rewards.classes.a: subprocess:Popen is in Python's",
    OWN.format("a", "subprocess:CompletedProcess"): "rewards.classes.a: subprocess:Completed",
    OWN.format("a", "dies:Nope"): "rewards.classes.a: importing its code ended the process "
    "(exit code 3): a last word",
    OWN.format("a", "leaves:Nope"): "rewards.classes.a: leaves:Nope fails: SystemExit: 0",
    "rewards: {classes: {good: 'mine:Good'}, held_out: [good], options: {good: {scal: 2}}}": (
        "toy.yaml:5: rewards.options.good: unknown option scal; did you mean scale?"
    ),
    "rewards.options: {composition: {a: 1}}": "rewards.options.composition: composition takes none",
    "rewards: {held_out: [hps], options: {hps: {checkpoint: /nope/hps.pt}}}": (
        "toy.yaml:5: rewards.options.hps: checkpoint: there is no file or folder /nope/hps.pt"
    ),
    **{
        f"rewards: {{held_out: [unifiedreward], options: {{unifiedreward: {options}}}}}": (
            f"toy.yaml:5: rewards.options.unifiedreward: {said}"
        )
        for options, said in (
            ("{score: nope}", "score: expected 'alignment', 'alignment-2.0' or 'pointwise', not"),
            ("{at_once: 0}", "at_once must be 1 or more, timeout above 0 and retries 0 or more"),
            ("{at_once: 1.5}", "at_once: expected a valid integer, not 1.5"),
            (
                "{api_key_env: NOT_SET_ANYWHERE}",
                "api_key_env names an environment variable",
            ),
            (
                "{login_env: NOT_SET_ANYWHERE}",
                "login_env names an environment variable",
            ),
            ("{timeout: soon}", "timeout: expected a valid number, not 'soon'"),
        )
    },
    "rewards: {held_out: [unifiedreward], options: {unifiedreward: {urls: []}}}": (
        "rewards.options.unifiedreward.urls: must be a list of addresses"
    ),
    "rewards: {held_out: [hps], options: {hps: {batch: 0}}}": (
        "toy.yaml:5: rewards.options.hps: batch: expected 1 or more, not 0"
    ),
    "rewards: {held_out: [hps], options: {hps: {checkpoint: 5}}}": (
        "toy.yaml:5: rewards.options.hps: checkpoint: expected a valid string, not 5"
    ),
    "rewards: {held_out: [aesthetic], options: {aesthetic: {clip: 7}}}": (
        "rewards.options.aesthetic: clip: expected a valid string, not 7"
    ),
    "optimizer: {name: torch.optim.Nope}": "toy.yaml:5: optimizer.name torch.optim.Nope: cannot be",
    "optimizer: {name: torch.nn.Linear}": "optimizer.name torch.nn.Linear: is no torch.optim.Opt",
    "optimizer: {name: torch.optim.LBFGS}": "optimizer.name torch.optim.LBFGS: computes the loss",
    "optimizer.options: {foo: 1}": "toy.yaml:5: optimizer.options foo: adamw takes no such option",
    "optimizer.options: {eps: -1}": "toy.yaml:5: optimizer.name adamw: refuses its settings",
    "optimizer: {name: torch.optim.SparseAdam}": "optimizer.name torch.optim.SparseAdam: fails at "
    "its first step (RuntimeError: SparseAdam does not support dense gradients",
    "optimizer: {name: 'mine.Keeps'}": "Keeps keeps memory as a list, which a checkpoint cannot",
    "optimizer: {name: 'mine.Leaves'}": "fails at its first step (SystemExit: 0",
    "rewards.train: {ocr: 1.0}": "rewards.train.ocr: cannot judge the prompts of model scenes "
    "(reward ocr: the prompt ",
    "rewards.held_out: [ocr]": "rewards.held_out.ocr: cannot judge the prompts of model scenes (",
    "rollout.prompts: 100000": "rollout.prompts: scenes has ",
    "model.checkpoint: /nope": "toy.yaml:5: model.checkpoint /nope: there is no such file",
    "model.checkpoint: {own}/mine.py": "mine.py: not a safetensors file",
    "prompts.train: {own}/prompts.txt": "prompts.txt has 2 prompts, and an iteration trains on",
    "prompts.held_out: {own}/other.txt": "'a photo of a cat' is not a prompt of the scenes",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_a_job_would_find_after_half_a_minute(setting: str, desk: Path) -> None:
    text, _ = refusal(desk, "iterations: 2", setting.replace("{own}", str(desk.parent / "own")))
    assert REFUSED[setting] in text
    assert text.startswith("toy.yaml:5: ")
    assert text.count("\n") == 0
    assert list(desk.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimizer: {name: torch.optim.Muon}", "refuses the weights that are trained"),
        ("model: {train: lora, lora_targets: [nope]}", "no linear layer's name ends with nope"),
    ],
)
def test_what_depends_on_the_networks_layers(setting: str, expected: str, desk: Path) -> None:
    text, _ = refusal(desk, "iterations: 2", setting)
    assert text.startswith("toy.yaml:5: ")
    assert expected in text


@pytest.mark.parametrize(
    "setting",
    [
        OWN.format("good", "mine:Good"),
        "optimizer: {name: torch.optim.Adafactor}",
        "optimizer.options: {eps: 1.0e-6}",
        "prompts.held_out: {own}/prompts.txt",
    ],
)
def test_what_is_right_passes(setting: str, desk: Path) -> None:
    setting = setting.replace("{own}", str(desk.parent / "own"))
    assert refusal(desk, "iterations: 2", setting) == ("", [])


def test_a_key_that_the_job_s_node_may_have_is_not_asked_for_here(desk: Path) -> None:
    options = "{api_key_env: NOT_SET_ANYWHERE}"
    setting = f"rewards: {{held_out: [unifiedreward], options: {{unifiedreward: {options}}}}}"
    assert refusal(desk, "iterations: 2", setting, here=False) == ("", [])


def test_a_module_that_leaves_the_working_directory_loses_no_file(desk: Path) -> None:
    (desk.parent / "own" / "wanders.py").write_text("import os\nos.chdir('/')\n" + REWARDS)
    code = "classes: {good: 'wanders:Good'}, held_out: [good, hps], options: {hps: {checkpoint: F}}"
    files = "prompts: {train: F, held_out: F}", f"rewards: {{{code}}}"
    settings = [text.replace("F", "../own/prompts.txt") for text in files]
    assert refusal(desk, "iterations: 2", "rollout.prompts: 2", *settings) == ("", [])


def test_built_in_code_starts_no_process(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    assert refusal(desk, "iterations: 2", "model.checkpoint: small") == ("", [])
    settings = [
        "model: {name: flux, checkpoint: black-forest-labs/FLUX.1-dev}",
        "rewards: {train: {hps: 1.0}, held_out: [pickscore]}",
        f"prompts: {{train: {desk.parent}/own/prompts.txt, held_out: {desk.parent}/own/other.txt}}",
        "rollout.prompts: 2",
    ]
    assert refusal(desk, *settings, here=False) == ("", [])


def test_several_arms_are_asked_about_in_one_process(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: (started.append(a), popen(*a, **k))[1])
    file = desk.parent / "own" / "toy.yaml"
    file.write_text(
        "name: toy\nquestion: Which?\nseeds: 3\narms:\n"
        + "".join(f"  a{n}: {{optimizer.name: torch.optim.Nope{n}}}\n" for n in range(3))
    )
    sweep = load_sweep(file)
    named = [(run.config, sweep.layers[run.arm]) for run in sweep.runs]
    with pytest.raises(ConfigError) as error:
        preflight.check_code(named, True, print)
    places = [str(one).partition(": ")[0] for one in error.value.errors]
    assert places == [f"{file}:{line}" for line in (5, 6, 7)]
    assert len(started) == 1


def test_an_import_that_does_not_end_is_ended(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "IMPORTS_TIMEOUT_S", 5.0)
    text, _ = refusal(desk, "iterations: 2", OWN.format("a", "waits:Nope"))
    assert text == "toy.yaml:5: rewards.classes.a: importing its code takes longer than 5 s"


def test_code_that_wants_a_gpu_is_not_refused_where_the_gpus_are_elsewhere(desk: Path) -> None:
    text, said = refusal(desk, "iterations: 2", OWN.format("a", "needs_gpu:A"), here=False)
    assert text == ""
    assert "Found no NVIDIA driver (a node with a GPU may differ)" in said[0]
    text, said = refusal(desk, "iterations: 2", OWN.format("a", "needs_gpu:A"), here=True)
    assert "Found no NVIDIA driver" in text


def test_the_choices_and_own_trials_of_a_search_are_looked_at(desk: Path) -> None:
    file = desk.parent / "own" / "search.yaml"
    file.write_text(
        "name: toy\nquestion: Which?\ntrials: 2\nspace:\n  window.size: [1, 2]\n"
        "  optimizer.name: [adamw, torch.optim.Nope]\n"
    )
    with pytest.raises(ConfigError, match=r"search.yaml:6: optimizer.name torch.optim.Nope: cann"):
        preflight.check_code(load_search(file).named(), True, print)


# ---- a refused command leaves nothing behind ----------------------------------------------------

SEARCH = "name: look\nquestion: Which?\ntrials: 2\nspace: {window.size: [1, 2]}\n"
FOUR_NODES = "slurm: {nodes: 4, gpus: 8, tasks_per_node: 8, sharded: true}\n"
COMMANDS = {
    "harness.sweep {own}/nope.yaml": "nope.yaml: no such file",
    "harness.sweep {own}/toy.yaml --profile nope": "no such profile: nope",
    "harness.sweep {own}/toy.yaml --jobs 0": "--jobs",
    "harness.sweep {own}/toy.yaml --jobs 2 --executor inline": "--jobs: the inline executor",
    "harness.sweep {own}/toy.yaml --set nope=1": "--set nope=1: nope: unknown key",
    "harness.sweep {own}/toy.yaml --only nope": "--only nope: no such arm",
    "harness.sweep {own}/toy.yaml --executor nope": "nope",
    "harness.sweep {own}/toy.yaml --executor slurm": "--executor slurm: ",
    "harness.sweep {own}/toy.yaml --executor slurm --slurm nope=1": "slurm: nope: unknown key",
    "harness.sweep {own}/toy.yaml --executor slurm --runs a%b": "a%b/toy': contains a %",
    "harness.sweep {own}/toy.yaml --slurm time=1": "--slurm: only --executor slurm",
    "harness.sweep {own}/toy.yaml --runs {own}/mine.py": "--runs: {own}/mine.py is not a folder",
    "harness.sweep {own}/toy.yaml --reports {own}/mine.py/x": "mine.py is not a folder",
    "harness.sweep {own}/toy.yaml --runs " + "d" * 300: "has 300 bytes",
    "harness.sweep {own}/many.yaml": "a run of arm interval=1 is meant for 32 processes on 32 GPUs",
    "harness.sweep {own}/many.yaml --executor inline": "this machine has 0 GPU(s)",
    "harness.sweep {own}/many.yaml --plan": "Take --executor slurm, or settings for one GPU",
    "harness.sweep {own}/wrong.yaml": "wrong.yaml:7: slurm: mem: unknown key",
    "harness.sweep {own}/toy.yaml --reports {own}/loop": "loop is not a folder",
    "mixgrpo.train {own}/loop --out r": "loop: a link that leads to itself",
    "harness.sweep {own}/own.yaml": "add --trust",
    "harness.sweep {own}/own.yaml --trust": "rewards.classes.a: mine:Nope fails",
    "harness.sweep {own}/own.yaml --trust --detach": "rewards.classes.a: mine:Nope fails",
    "harness.search {own}/look.yaml --storage nope": "--storage: is not a URL",
    "harness.search {own}/look.yaml --storage nope://x": "--storage nope://x: ",
    "harness.search {own}/look.yaml --storage postgresql+nope://u@h/d": "--storage postgresql+nope",
    "harness.search {own}/look.yaml --executor slurm": "--executor slurm: ",
    "harness.search {own}/look.yaml --set optimizer.name=torch.optim.Nope": "cannot be imported",
    "harness.search {own}/look.yaml --plan --status": "give one of them",
    "harness.report {own}/toy.yaml": "no",
    "harness.report --all": "--all: no sweep files",
    "harness.probe {own}/toy.yaml": "probes: names none",
    "harness.status {own}/toy.yaml --profile nope": "no such profile: nope",
    "harness.logs nope": "nope: no run of this name",
    "mixgrpo.train {own}/run.yaml": "--out: name the run's folder",
    "mixgrpo.train {own}/run.yaml --out r --set optimizer.name=torch.optim.Nope": "cannot be imp",
    "mixgrpo.train {own}/run.yaml --dry-run --set optimizer.name=torch.optim.Nope": "cannot be",
    "mixgrpo.train {own}/run.yaml --out r --processes 2": "accelerate launch starts processes",
    "mixgrpo.train {own}/run.yaml --out {own}/mine.py": "mine.py is not a folder",
    "mixgrpo.evaluate nope": "nope",
    "mixgrpo.generate nope": "nope",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_command_leaves_nothing_and_says_one_line(
    command: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = desk.parent / "own"
    (own / "toy.yaml").write_text(sweep_text("iterations: 2"))
    (own / "many.yaml").write_text(sweep_text("iterations: 2") + FOUR_NODES)
    (own / "wrong.yaml").write_text(sweep_text("iterations: 2") + "slurm: {nodes: 4, mem: 3}\n")
    (own / "loop").symlink_to("loop")
    (own / "own.yaml").write_text(sweep_text(OWN.format("a", "mine:Nope")))
    (own / "look.yaml").write_text(SEARCH)
    (own / "run.yaml").write_text("iterations: 2\n")
    monkeypatch.setenv("PATH", "/nowhere")  # where no Slurm is
    before = sorted(path for path in own.rglob("*") if "__pycache__" not in path.parts)
    module, *rest = command.replace("{own}", str(own)).split()
    done = subprocess.run(
        [sys.executable, "-m", module, *rest], capture_output=True, text=True, timeout=120
    )
    assert COMMANDS[command].replace("{own}", str(own)) in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert list(desk.rglob("*")) == []
    assert sorted(p for p in own.rglob("*") if "__pycache__" not in p.parts) == before
