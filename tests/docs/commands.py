"""The commands that README.md and docs/*.md tell a reader to type, and what becomes of each here.

`RUN` are run as they are written (test_commands.py). `ELSEWHERE` are run by another test or by CI.
`CANNOT` no test can run, for the reason given. Every command of the pages is in one of the three,
and nothing else is.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = r"(?:\.venv/bin/)?(?:python3?|make|pip|hf|accelerate|mkdocs|optuna-dashboard)"
_INLINE = re.compile(rf"`({_PROGRAMS}\s[^`]+)`")

RUN: dict[str, str | Path] = {
    # The placeholders stand for a sweep whose runs have finished, and for runs of small models.
    "python -m harness.sweep FILE --plan": "nothing to run: all runs are finished",
    "python -m harness.sweep FILE": "report: reports/tau/index.html",
    "python -m harness.sweep sweeps/tau.yaml": "report: reports/tau/index.html",
    "python -m harness.sweep FILE --executor slurm": "12 of 12 runs finished",
    "python -m harness.sweep sweeps/tau.yaml --executor slurm": "12 of 12 runs finished",
    "python -m harness.sweep sweeps/tau.yaml --executor slurm --plan": "nothing to run",
    "python -m harness.sweep FILE --executor slurm --slurm partition=debug --slurm time=30": (
        "12 of 12 runs finished"
    ),
    "python -m harness.sweep sweeps/tau.yaml --profile flux --executor slurm --plan": (
        "#SBATCH --nodes=4"
    ),
    "python -m harness.sweep FILE --until-decided --plan": "looks at 5, 8, 12, 16, 24, 32 seeds",
    "python -m harness.power FILE --effect 0.02 --margin 0.02": "fixed seeds",
    "python -m harness.power FILE --effect 0.02 --pilot 3": "fixed seeds",
    "python -m harness.status FILE": "12 finished",
    "python -m harness.status sweeps/tau.yaml": "12 finished",
    "python -m harness.status sweeps/tau.yaml --profile flux": "12 waiting",
    "python -m harness.logs RUN": "the log of a run",
    "python -m harness.logs RUN --follow": "the log of a run",
    "python -m harness.logs interval=5-seed0 --follow": "the log of a run",
    "python -m harness.report FILE": "reports/tau/index.html",
    "python -m harness.report --all": "reports/tau/index.html",
    "python -m harness.search sweeps/search/window.yaml --plan": "no trial yet",
    "python -m harness.search sweeps/search/window.yaml --status": "no trial yet",
    "python -m harness.reference": "# Reference of the sweep file",
    "python -m harness.cost": "| MixGRPO | 150.839 |",
    "python -m harness.cost sweeps/methods.yaml sweeps/tau.yaml sweeps/window.yaml "
    "sweeps/stride.yaml sweeps/strategy.yaml sweeps/solver.yaml sweeps/overhead.yaml": (
        "| together |"
    ),
    "mkdir -p ~/.config/mixgrpo": Path("home/.config/mixgrpo"),
    "echo 'partition: gpu' > ~/.config/mixgrpo/slurm.yaml": Path("home/.config/mixgrpo/slurm.yaml"),
    "mkdir prompts": Path("prompts"),
    "cp my-prompts.txt prompts/train.txt": Path("prompts/train.txt"),
    "cp my-other-prompts.txt prompts/held_out.txt": Path("prompts/held_out.txt"),
    "python -m mixgrpo.train CONFIG --out DIR": Path("runs/toy/result.json"),
    "python -m mixgrpo.train sweeps/presets/flux-lora.yaml --dry-run": "Memory per rank",
    "python -m mixgrpo.train sweeps/presets/flux.yaml --dry-run --processes 32 --sharded": (
        "32 ranks"
    ),
    "python -m mixgrpo.train sweeps/presets/flux-lora.yaml --out runs/flux": Path(
        "runs/flux/result.json"
    ),
    "python -m mixgrpo.generate DIR": "iteration 60, pure: done",
    "python -m mixgrpo.generate RUN --seed 0 --seed 1 --checkpoint 50 --checkpoint 60": (
        "iteration 50, pure: done"
    ),
    'python -m mixgrpo.generate RUN --prompt "two red squares" --p-mix 0.8 --order 2 --steps 12': (
        "iteration 60, p_mix 80 %: done"
    ),
    "python -m mixgrpo.evaluate DIR --p-mix 0.8": "p_mix 80 %",
    "python -m mixgrpo.evaluate RUN --p-mix 0.8": "p_mix 80 %",
    "python -m mixgrpo.evaluate RUN --parquet scores.parquet": Path("scores.parquet"),
    "python -m mixgrpo.generate RUN --parquet images.parquet": Path("images.parquet"),
    "python -m mixgrpo.embed --config sweeps/presets/flux.yaml": "embeddings",
    "python -m mixgrpo.embed prompts/train.txt prompts/held_out.json --config run.yaml": (
        "embeddings"
    ),
    "python -m mixgrpo.embed --config run.yaml": "embeddings",
    "python -m mixgrpo.embed --config run.yaml --shard 0/4": "embeddings",
    "python -m mixgrpo.to_pipeline RUN --out my-flux": "my-flux",
    "python -m mixgrpo.to_pipeline DIR --out FOLDER": "my-pipeline",
    "python -m mixgrpo.reference": "# Settings of a run",
}
"""By command: a text that its output has, or what is there after it."""

OPTIONS_ONLY = "python -m harness.sweep sweeps/flash.yaml [options]"

ELSEWHERE = {
    "make test": (".ci/run", "make test"),
    "make docs": ("tests/docs/test_site.py", '"mkdocs", "build", "--strict"'),
    "python3 -m venv .venv": ("Makefile", "$(PYTHON) -m venv $(VENV)"),
    "pip install -e .": (
        "Makefile",
        "$(PIP) --editable .",
    ),
    ".venv/bin/pip install -e '.[trackers]'": ("pyproject.toml", '"mixgrpo[trackers,ocr'),
    "pip install -e '.[ocr]'": ("pyproject.toml", '"mixgrpo[trackers,ocr,search'),
    "pip install -e '.[search]'": ("pyproject.toml", '"mixgrpo[trackers,ocr,search'),
    "python -m harness.sweep sweeps/smoke.yaml": ("tests/test_end_to_end.py", "smoke.yaml"),
    "python -m harness.sweep sweeps/smoke.yaml --executor slurm --slurm gpus=0 --slurm time=10": (
        "tests/slurm/chaos.py",
        '"harness.sweep", SWEEP, "--executor", executor',
    ),
    OPTIONS_ONLY: (
        "tests/harness/study/test_sweeps_doc.py",
        '"harness.sweep", str(example), "--plan"',
    ),
    ".venv/bin/python -m mixgrpo.train examples/own/run.yaml --out runs/own": (
        "tests/test_docs.py",
        '"mixgrpo.train", "examples/own/run.yaml"',
    ),
    "accelerate launch --multi_gpu --num_processes 8 -m mixgrpo.train CONFIG --out DIR": (
        "tests/mixgrpo/rank_children.py",
        '("--multi_gpu",)',
    ),
    "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 -m mixgrpo.train CONFIG "
    "--out DIR": ("tests/mixgrpo/rank_children.py", '("--use_fsdp", "--fsdp_version", "2")'),
    "python -m benchmarks.iteration_time": (
        "tests/benchmarks/test_iteration_time.py",
        "iteration_time.main(",
    ),
    "python -m benchmarks.iteration_time --out DIR": (
        "tests/benchmarks/test_iteration_time.py",
        "iteration_time.main(",
    ),
    "python -m benchmarks.flux_iteration": (
        "tests/benchmarks/test_flux_iteration.py",
        "flux_iteration.main(",
    ),
    "python -m benchmarks.harness_overhead": (
        "tests/benchmarks/test_harness_overhead.py",
        "harness_overhead.main(",
    ),
    "python -m benchmarks.interval_coverage": ("tests/docs/test_numbers.py", "interval_coverage"),
    "python -m mixgrpo.scenes.clarity": (
        "tests/mixgrpo/scenes/test_scenes.py",
        "clarity_module.train(",
    ),
    "python -m harness.search sweeps/search/window.yaml": (
        "tests/harness/test_search.py",
        'HERE / "fake_search.py"',
    ),
    "python -m harness.probe FILE [--jobs K] [--only ARM]": (
        "tests/harness/test_probe.py",
        '"harness.probe", "toy.yaml", "--jobs", "2"',
    ),
    "python -m harness.probe FILE": (
        "tests/harness/test_probe.py",
        '"harness.probe", "toy.yaml", "--jobs", "2"',
    ),
    "python -m harness.sweep reports/<name>/confirm.yaml --plan": (
        "tests/harness/test_search.py",
        'load_sweep(report / "confirm.yaml")',
    ),
    "optuna-dashboard runs/<name>/study.journal": (
        "tests/harness/test_search.py",
        "def test_optuna_dashboard_opens_the_storage",
    ),
    "python3 -m tests.slurm.cluster install": (".ci/run", "python3 -m tests.slurm.cluster install"),
    "python -m tests.slurm.chaos --minutes 3 --seed 0": (
        ".ci/run",
        "-m tests.slurm.chaos --minutes 3 --seed 0",
    ),
}
"""By command: the file that runs it, and the text in that file that shows it."""

_WEIGHTS = "downloads gated or large weights from the Hugging Face hub"
_GPUS = "submits the paper's runs: 32 GPUs and the weights of FLUX"

CANNOT = {
    "python -m http.server --directory site": "serves until it is stopped",
    "make tau LOCKED=1": "installs for minutes, then is `make tau`",
    "make tau": "trains for a quarter of an hour; its one line is run on finished runs",
    "python -m mixgrpo.pretrain": "trains the embedded base model for minutes",
    ".venv/bin/pip install -e examples/own": (
        "changes the environment of the tests; tests/test_docs.py writes the metadata it would"
    ),
    ". .venv/bin/activate": "changes the shell that it is typed into",
    "python3 -m venv .venv && . .venv/bin/activate": "changes the shell that it is typed into",
    "vllm serve CodeGoat24/UnifiedReward-qwen-7b": "needs a GPU, vLLM and the weights",
    "python -m mixgrpo.embed PROMPTS": "needs the real text encoders of FLUX",
    "python -m mixgrpo.embed prompts.txt --set model.name=sd3": (
        "needs the real text encoders of SD3.5"
    ),
    "hf auth login": "asks for a person's token",
    "hf download black-forest-labs/FLUX.1-dev --exclude flux1-dev.safetensors "
    "--exclude ae.safetensors": _WEIGHTS,
    "hf download stabilityai/stable-diffusion-3.5-medium": _WEIGHTS,
    "hf download xswu/HPSv2 HPS_v2.1_compressed.pt": _WEIGHTS,
    "hf download yuvalkirstain/PickScore_v1": _WEIGHTS,
    "hf download THUDM/ImageReward ImageReward.pt": _WEIGHTS,
    "hf download google-bert/bert-base-uncased vocab.txt": _WEIGHTS,
    "hf download apple/DFN5B-CLIP-ViT-H-14-384": _WEIGHTS,
    "hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K --include 'tokenizer*' --include vocab.json "
    "--include merges.txt": _WEIGHTS,
    "hf download trl-lib/ddpo-aesthetic-predictor aesthetic-model.pth": _WEIGHTS,
    "hf download openai/clip-vit-large-patch14": _WEIGHTS,
    "python -m harness.sweep sweeps/tau.yaml --profile flux --executor slurm --snapshot": _GPUS,
    "python -m harness.sweep sweeps/tau.yaml --profile flux --executor slurm --only interval=25 "
    "--set iterations=2 --set evaluation.prompts=8 --slurm time=60": _GPUS,
}
"""By command: the reason why no test runs it."""


def told(text: str) -> list[str]:
    """The commands of a page, without comments: its shell blocks, and programs named in prose."""
    blocks = [block for _, kind, block in _FENCE.findall(text) if kind == "sh"]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("; ")]
    found = [" ".join(part.split()) for part in [*parts, *_INLINE.findall(_FENCE.sub("", text))]]
    # `accelerate launch` alone names a program, not a command.
    return [command for command in dict.fromkeys(found) if command and command not in _NAMES]


_NAMES = ("accelerate launch",)


def everything() -> dict[str, list[str]]:
    """The pages that tell each command."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for command in told(page.read_text(encoding="utf-8")):
            found.setdefault(command, []).append(page.name)
    return found
