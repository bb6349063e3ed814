"""Times iterations of FLUX.1-dev with random weights, method by method.

    python -m benchmarks.flux_iteration --out DIR                 # on the CPU, scaled down
    python -m benchmarks.flux_iteration --out DIR --scale full    # on a GPU of 80 GB
    python -m benchmarks.flux_report DIR

What is timed is `Trainer.iterate`, as users get it: DanceGRPO with 14 and with 4 trained steps,
MixGRPO with its window at l = 0, 5 and 11, Flash and Flash*, each with one noise per group, so that
its images share what they have in common, and with a noise for each image. First the device's
matrix products and the network's own passes are timed, and the time of every variant is foretold
from them; where not all of them have room in the minutes that are given, groups are made smaller,
and that is said. Two calls, --sharing on and --sharing off, have twice the time. Every call adds
its measurements to DIR/flux_iteration_<device>.json.
"""

import gc
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer

from benchmarks import flux_random
from benchmarks.arms import check, mean_position, unshared
from benchmarks.flux_random import SCALES, Scale
from mixgrpo import cli
from mixgrpo.compute.clock import now
from mixgrpo.compute.machine import processor
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_json
from mixgrpo.forecast.footprint import Footprint, Pass, footprint
from mixgrpo.models.adapters import add_lora
from mixgrpo.sampling.plan import Cost, iteration_cost, make_plan
from mixgrpo.settings.config import ModelConfig, RunConfig
from mixgrpo.settings.configfile import load_config
from mixgrpo.training.trainer import Trainer

_PRESETS = Path(__file__).parents[1] / "sweeps" / "presets"
_GROUPS = (12, 8, 4)
"""Images of a group; an iteration has four updates, each of at least one."""
_SPARE = 1.15
"""The foretold time is that of the passes alone; iterations take some more."""


@dataclass(frozen=True)
class Variant:
    """A method, and where its window is."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    window: int | None = None
    """l; none: where an iteration's cost is nearest to the mean of the run."""


_ETA = "sampler.eta=0.7"
VARIANTS = (
    Variant("dance-grpo, 14 steps", "dance-grpo"),
    Variant("dance-grpo, 4 steps", "dance-grpo", ("window.count=4", "window.fraction=1.0")),
    Variant("mixgrpo, l = 0", "mixgrpo", (_ETA,), 0),
    Variant("mixgrpo, l = 5", "mixgrpo", (_ETA,), 5),
    Variant("mixgrpo, l = 11", "mixgrpo", (_ETA,), 11),
    Variant("mixgrpo-flash", "mixgrpo-flash", (_ETA,)),
    Variant("mixgrpo-flash-star", "mixgrpo-flash-star", (_ETA,)),
)
NAMES = [variant.name for variant in VARIANTS]


@dataclass(frozen=True)
class Options:
    """What a user may tune."""

    scale: str
    micro_batch: int
    attention: str | None
    compile: bool
    reward: bool
    """Whether a stand-in for a reward's network scores the images."""


@dataclass(frozen=True)
class Job:
    """One variant with or without sharing, as a configuration and an iteration of it."""

    variant: str
    shared: bool
    config: RunConfig
    iteration: int

    @property
    def cost(self) -> Cost:
        return iteration_cost(self.config, self.iteration)

    @property
    def rollout(self) -> int:
        """Evaluations of the rollout; the rest of the forwards are of the update."""
        return self.cost.forward - self.cost.backward


@dataclass(frozen=True)
class Probe:
    """What the device and the network can do, measured before the iterations."""

    matmul: float
    """Floating-point operations per second of a large matrix product in the network's dtype."""
    forward: float
    """Seconds per latent of a forward without gradient."""
    both: float
    """Seconds per latent of a forward and its backward."""
    forward_flops: int
    """Per latent, from the architecture."""
    both_flops: int
    """Of forward and backward, without what gradient checkpointing computes again."""

    def foretold(self, job: Job) -> float:
        """Seconds of an iteration's passes."""
        return job.rollout * self.forward + job.cost.backward * self.both


def job(variant: Variant, shared: bool, images: int, options: Options) -> Job:
    """The settings of a variant: the method's preset with those of the paper for FLUX."""
    precision = "bf16" if SCALES[options.scale].dtype == torch.bfloat16 else "fp32"
    backend = f":{options.attention}" if options.attention else ""
    tower = "{}" if options.scale == "full" else "{tower: {width: 128, layers: 2, heads: 2}}"
    overrides = [
        "model.name=random-flux",
        f"model.checkpoint={options.scale}{backend}",
        "model.train=lora",
        "sampler.shift=3.0",
        "rollout.prompts=1",
        f"rollout.group_size={images}",
        f"rewards.train={{{'tower' if options.reward else 'projection'}: 1.0}}",
        f"rewards.options={tower if options.reward else '{}'}",
        "rewards.held_out=[]",
        "optimizer.lr=1.0e-5",
        "optimizer.max_grad_norm=1.0",
        f"compute.precision={precision}",
        "compute.gradient_checkpointing=true",
        f"compute.micro_batch={options.micro_batch}",
        f"compute.compile={str(options.compile).lower()}",
        "health.drift=false",
        *variant.overrides,
    ]
    config = load_config(_PRESETS / f"{variant.preset}.yaml", overrides)
    window = config.make_window()
    if variant.window is None:
        iteration = mean_position(config).iteration
    else:
        every = range(config.iterations)
        iteration = next(m for m in every if window.start_at(m) == variant.window)
    return Job(variant.name, shared, config if shared else unshared(config), iteration)


def jobs(names: list[str], sharing: str, images: int, options: Options) -> list[Job]:
    chosen = [v for v in VARIANTS if v.name in names]
    ways = {"on": [True], "off": [False], "both": [True, False]}[sharing]
    return [job(variant, shared, images, options) for variant in chosen for shared in ways]


def flops(scale: Scale, gradient: bool) -> Footprint:
    """Of one latent through the transformer, from its architecture alone; with `gradient` also
    backwards to adapters on its attention."""
    network, vae = flux_random.networks(scale, "meta")
    torch.nn.Module.to(network, torch.float32)
    channels = int(vae.config["latent_channels"])  # type: ignore[index]
    if gradient:
        add_lora(network, ModelConfig(train="lora"), 0)
    side = scale.pixels // 16

    def prepare() -> Pass:
        sizes = scale.transformer
        inputs = {
            "hidden_states": torch.zeros(1, side**2, 4 * channels),
            "encoder_hidden_states": torch.zeros(1, scale.text, sizes["joint_attention_dim"]),
            "pooled_projections": torch.zeros(1, sizes["pooled_projection_dim"]),
            "timestep": torch.zeros(1),
            "guidance": torch.zeros(1),
            "img_ids": torch.zeros(side**2, 3),
            "txt_ids": torch.zeros(scale.text, 3),
        }

        def run() -> torch.Tensor:
            (out,) = network(**inputs, return_dict=False)
            found: torch.Tensor = out
            return found

        return run

    return footprint([network], prepare, gradient)


def seconds(work: Callable[[], object], device: str, times: int) -> float:
    """Median over the calls, after one that does not count; on a CPU of processor time."""
    work()
    on_gpu = device.startswith("cuda")

    def read() -> float:
        return now(device) if on_gpu else time.process_time()

    found = []
    for _ in range(times):
        begin = read()
        work()
        found.append(read() - begin)
    return median(found)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a product of square matrices: of 8192 on a GPU, of 1024 on a CPU."""
    side, times = (8192, 20) if device.startswith("cuda") else (1024, 10)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, times)


def probe(trainer: Trainer, options: Options) -> Probe:
    """Times the passes in the batches that iterations are made of."""
    device, scale = trainer.device, SCALES[options.scale]
    batch = options.micro_batch
    text = trainer.policy.encode(trainer.train_prompts[:1] * batch)
    latents = torch.randn(batch, *trainer.policy.latent_shape, device=device)

    def forward() -> None:
        with torch.no_grad():
            trainer.plain_velocity(latents, 0.5, text)

    def both() -> None:
        trainer.plain_velocity(latents, 0.5, text).sum().backward()

    found = Probe(
        matmul_rate(device, scale.dtype),
        seconds(forward, device, 2) / batch,
        seconds(both, device, 1) / batch,
        flops(scale, False).flops,
        flops(scale, True).flops,
    )
    for parameter in trainer.parameters.values():
        parameter.grad = None
    return found


def iterate(trainer: Trainer, one: Job) -> dict[str, float]:
    """Run the job's iteration. Its seconds by phase, its evaluations, and its peak of memory.

    RunError where the evaluations are not those of the plan.
    """
    # One trainer serves all: none of the weights that it holds depend on the method.
    trainer.config, trainer.window = one.config, one.config.make_window()
    gc.collect()
    if trainer.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(trainer.device)
    begin = time.process_time()
    line = trainer.iterate(one.iteration)
    worked = time.process_time() - begin
    counted = Cost(int(line["evaluations_computed"]), int(line["backward_computed"]))
    check(f"{one.variant}, {'shared' if one.shared else 'own'} noise", counted, one.cost)
    phases = ("rollout", "decode", "reward", "update", "health", "other", "total")
    return {
        **{f"seconds_{phase}": line[f"seconds_{phase}"] for phase in phases},
        "seconds_processor": worked,
        "memory_peak_bytes": line["memory_peak_bytes"],
    }


def fitting(
    names: list[str], sharing: str, options: Options, found: Probe, room: float, rounds: int
) -> tuple[int, list[Job]]:
    """The largest groups with which everything is done in `room` seconds, or else the smallest."""
    for images in _GROUPS:
        chosen = jobs(names, sharing, images, options)
        if rounds * sum(found.foretold(one) for one in chosen) * _SPARE <= room:
            break
    return images, chosen


def described(one: Job) -> dict[str, Any]:
    """What a reader needs to know of a job."""
    window = one.config.make_window()
    return {
        "variant": one.variant,
        "shared": one.shared,
        "images": one.config.rollout.group_size,
        "window": window.start_at(one.iteration),
        "steps": make_plan(one.config.sampler, window.steps_at(one.iteration)).steps,
        "rollout": one.rollout,
        "forward": one.cost.forward,
        "backward": one.cost.backward,
    }


def made_on(device: str) -> dict[str, Any]:
    """Where, when and with what it was measured."""
    cuda = device.startswith("cuda")
    where = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=where, capture_output=True, text=True)
        return done.stdout.strip()

    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {processor()}",
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "diffusers": importlib.metadata.version("diffusers"),
        "peft": importlib.metadata.version("peft"),
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--short") else ""),
        "date": datetime.now(UTC).date().isoformat(),
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(
    names: list[str],
    sharing: str,
    options: Options,
    device: str,
    rounds: int,
    images: int | None,
    until: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Time the jobs, round after round, as long as there is time; `keep` gets each result."""
    first = job(VARIANTS[0], True, images or _GROUPS[0], options)
    tell(f"making {SCALES[options.scale].title}")
    trainer = Trainer(first.config, Ranks(device=device))
    found = probe(trainer, options)
    keep({"probe": asdict(found)})
    achieved = found.forward_flops / found.forward
    tell(
        f"matrix products {found.matmul / 1e12:.4g} TFLOP/s; forward {found.forward:.4g} s per "
        f"latent, {achieved / found.matmul:.0%} of that; with backward {found.both:.4g} s"
    )
    warm = int(options.compile)  # a turn that compiles for every shape
    turns = rounds + warm
    room = until - time.monotonic()
    if images is None:
        images, chosen = fitting(names, sharing, options, found, room, turns)
    else:
        chosen = jobs(names, sharing, images, options)
    for one in chosen:
        tell(f"  {_title(one)}: about {found.foretold(one):.3g} s")
    if images < _GROUPS[0]:
        tell(
            f"groups of {images} images instead of {_GROUPS[0]}: the whole iterations do not have "
            f"room in the {room / 60:.1f} minutes that are left; name fewer variants or raise "
            "--minutes"
        )
    last: dict[tuple[str, bool], float] = {}
    for turn in range(turns):
        # There and back, so that what changes with time does not favour one of them.
        for one in chosen if turn % 2 == 0 else chosen[::-1]:
            name = (one.variant, one.shared)
            expected = last.get(name, found.foretold(one) * _SPARE)
            if time.monotonic() + expected > until:
                tell(f"  {_title(one)}: left out, the time is over")
                continue
            result = iterate(trainer, one)
            last[name] = result["seconds_total"]
            if turn >= warm:
                keep({**described(one), "round": turn - warm, **result})
                tell(
                    f"  {_title(one)}: {result['seconds_total']:.4g} s, of the processor "
                    f"{result['seconds_processor']:.4g} s"
                )


def _title(one: Job) -> str:
    return f"{one.variant}, sharing {'on' if one.shared else 'off'}"


class Store:
    """One call's measurements among those of earlier calls, in one file."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self._file = file
        self._runs = json.loads(file.read_text())["runs"] if file.is_file() else []
        self._own = {**about, "measurements": []}

    def keep(self, result: dict[str, Any]) -> None:
        """Written at once: a call that is ended early loses nothing."""
        if "probe" in result:
            self._own |= result
        else:
            self._own["measurements"].append(result)
            write_json(self._file, {"runs": [*self._runs, self._own]})


def main(
    out: Annotated[Path, typer.Option(help="Folder for the measurements.")],
    scale: Annotated[
        Literal["cpu", "full"],
        typer.Option(help="FLUX's proportions scaled to a CPU, or FLUX.1-dev at full size."),
    ] = "cpu",
    variant: Annotated[
        list[str] | None, typer.Option(help="Time only this one; may be given several times.")
    ] = None,
    sharing: Annotated[Literal["on", "off", "both"], typer.Option(help="Within a group.")] = "both",
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for everything.")] = 9.0,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Times of each; 1 at full size, else 5.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=4, help="Of a group; else 12, or fewer where time is short.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda:0; else by scale.")] = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Latents in a forward.")] = 12,
    attention: Annotated[str | None, typer.Option(help="Attention backend of diffusers.")] = None,
    compile: Annotated[bool, typer.Option(help="Run through torch.compile.")] = False,
    reward: Annotated[
        bool, typer.Option(help="Score with a random network as large as HPS-v2.1's image side.")
    ] = False,
) -> None:
    """Time iterations of every method on FLUX with random weights."""
    until = time.monotonic() + 60 * minutes
    device = device or ("cuda:0" if scale == "full" else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"--scale {scale} on {device}: torch finds no such device here; use --scale cpu"
        )
    for name in variant or []:
        if name not in NAMES:
            raise ConfigError(f"--variant {name}: not one of {'; '.join(NAMES)}")
    options = Options(scale, micro_batch, attention, compile, reward)
    about = {
        "title": SCALES[scale].title,
        "made_on": made_on(device),
        "options": asdict(options),
    }
    out.mkdir(parents=True, exist_ok=True)
    kind = "gpu" if device.startswith("cuda") else "cpu"
    store = Store(out / f"flux_iteration_{kind}.json", about)
    rounds = rounds or (1 if scale == "full" else 5)
    with tempfile.TemporaryDirectory() as site:
        flux_random.install(Path(site))
        sys.path.append(site)
        try:
            measure(variant or NAMES, sharing, options, device, rounds, images, until, store.keep)
        finally:
            sys.path.remove(site)


if __name__ == "__main__":
    cli.run(main)
