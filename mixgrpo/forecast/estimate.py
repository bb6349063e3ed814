"""What a run will cost, said before anything is loaded: parameters, memory, evaluations.

Shapes come from the model's config files (`architecture`), memory and operations of a pass from a
trace without data (`footprint`), the rest is counted as the trainer makes it. On a CPU what a
forward keeps is met within 2 %, and the peak of a pass within 10 % (tests). Left out is what cannot
be known here: the allocator's fragments, workspaces of libraries, activations of text
encoders and rewards. Leave a tenth of the device free for them.
"""

import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mixgrpo.compute.ranks import Ranks
from mixgrpo.evaluation.held_out import IMAGES_AT_ONCE
from mixgrpo.files.prompts import read_prompts
from mixgrpo.forecast.architecture import Architecture, architecture
from mixgrpo.forecast.footprint import Footprint, Pass, footprint
from mixgrpo.forecast.reward_sizes import REWARD_NETWORKS
from mixgrpo.models.adapters import add_lora
from mixgrpo.models.protocol import Policy
from mixgrpo.sampling.inference import images_at_once
from mixgrpo.sampling.plan import iteration_cost, make_plan, run_cost
from mixgrpo.settings.config import RunConfig

_FULL = 4
"""Bytes of a number in float32."""
_LARGE = 80 * 10**9
"""Bytes of the GPUs that the presets are for."""
_GATHERED = 2
"""Blocks whose weights FSDP2 holds whole at a time: the one at work and the next."""
_BUCKET = 2**28
"""Of gradients that are summed over ranks together (`Ranks.sum_gradients`)."""


def describe(config: RunConfig, ranks: Ranks, as_on: str = "cuda") -> str:
    """What `config` will take on `ranks`, as a readable text. `as_on`: as for `footprint`.

    ConfigError where the model's own files are not there or not such a model's.
    """
    found = architecture(config)
    evaluations = _evaluations(config, ranks)
    if isinstance(found, str):
        return "\n".join([*evaluations, "", f"Memory: {found}."])
    estimate = Estimate.of(config, found, ranks, as_on)
    return "\n".join(
        [*estimate.about(), "", *evaluations, estimate.operations(), "", *estimate.memory()]
    )


@dataclass(frozen=True)
class Item:
    """Something that takes memory on a device."""

    kind: Literal["model", "training", "rewards"]
    """`model`: there before the first iteration too."""
    label: str
    bytes: int


def _items(kind: Literal["model", "rewards"], sizes: dict[str, int]) -> list[Item]:
    return [Item(kind, label, size) for label, size in sizes.items()]


def least_memory(config: RunConfig) -> tuple[int, int] | None:
    """Bytes that a run of one process needs whatever its batches are: on its device, of weights,
    their average, gradients and AdamW's moments; and on the disk, of one checkpoint.

    None where the model's sizes are not known here. Nothing is traced.
    """
    found = architecture(config)
    if isinstance(found, str):
        return None
    parameters = list(policy_of(config, found).network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    element = 2 if config.compute.precision == "bf16" else _FULL
    moments = 2 if config.optimizer.name == "adamw" else 0
    return frozen * element + (3 + moments) * trained * _FULL, 4 * trained * _FULL


@dataclass(frozen=True)
class Batches:
    """The most latents that one forward takes on one rank."""

    prompts: int
    """Of an iteration."""
    block: int
    """Prompts sampled together."""
    rollout: int
    update: int
    decode: int
    evaluation: int
    held: int
    """Images that an evaluation holds together."""

    @classmethod
    def of(cls, config: RunConfig, size: int) -> "Batches":
        """As `rollout`, `update.judge`, `collect.decode` and `evaluate` cut them."""
        objective, group = config.objective, config.rollout.group_size
        limit = config.compute.micro_batch or math.inf
        prompts = math.ceil(config.rollout.prompts / size)
        block = min(prompts, config.rollout.block or prompts)
        slots = config.trained_per_image
        rows = prompts * math.ceil(config.trained_images / objective.updates)
        plan = make_plan(config.sampler, config.make_window().steps_at(0))
        shared = (
            config.rollout.noise == "shared"
            and slots == config.window.size
            and plan.window_begins_shared
        )
        # From the second update on all slots together, but for one that begins shared.
        together = max(1, slots - shared) if objective.updates > 1 else 1
        images = config.evaluation.images_per_prompt
        held_out = math.ceil((_held_out(config) or IMAGES_AT_ONCE * size) / size)
        held = min(held_out, max(1, IMAGES_AT_ONCE // images)) * images
        return cls(
            prompts,
            block,
            rollout=int(min(limit, block * group)),
            update=int(min(limit, rows * together)),
            decode=int(min(limit, block * group)),
            evaluation=min(held, images_at_once(config.compute)),
            held=held,
        )


@dataclass(frozen=True)
class Estimate:
    """The sizes of a model, and of the passes that a run makes of it."""

    config: RunConfig
    architecture: Architecture
    ranks: Ranks
    weights: tuple[int, int]
    """Parameters of the network that are frozen, and that are trained."""
    largest_block: int
    """Parameters of the largest block that FSDP2 gathers."""
    batches: Batches
    forward: Footprint
    """Of a rollout's largest batch."""
    update: Footprint
    """Forward and backward of an update's largest batch."""
    reference: Footprint | None
    """A forward of the reference model on that batch."""
    evaluation: Footprint
    """A forward of an evaluation's batch."""
    decode: Footprint | None
    evaluation_decode: Footprint | None

    @classmethod
    def of(cls, config: RunConfig, found: Architecture, ranks: Ranks, as_on: str) -> "Estimate":
        batches = Batches.of(config, ranks.size)
        policy = policy_of(config, found)
        numbers = [(p.numel(), p.requires_grad) for p in policy.network.parameters()]
        if config.compute.precision == "bf16" and ranks.sharded:
            # As FSDP2's mixed precision gathers it.
            nn.Module.to(policy.network, torch.bfloat16)
        trace = partial(_trace, config, found, policy, as_on)
        decode = partial(_decode, config, found, as_on) if found.vae else lambda _: None
        return cls(
            config,
            found,
            ranks,
            (
                sum(n for n, trained in numbers if not trained),
                sum(n for n, trained in numbers if trained),
            ),
            max(_parameters(block) for block in blocks(policy.network)),
            batches,
            forward=trace(batches.rollout, False),
            update=trace(batches.update, True),
            reference=trace(batches.update, False) if config.objective.kl_weight else None,
            evaluation=trace(batches.evaluation, False),
            decode=decode(batches.decode),
            evaluation_decode=decode(batches.evaluation),
        )

    def about(self) -> list[str]:
        """The model and its parameters."""
        found, (frozen, trained) = self.architecture, self.weights
        model = self.config.model
        height, width = found.image
        lora = model.train == "lora"
        lines = [
            f"Model {model.name}, {height} x {width} pixels, from {found.source}",
            f"  network             {frozen if lora else trained:>16,} parameters"
            + (", frozen" if lora else ", all trained"),
        ]
        if lora:
            lines.append(
                f"  adapters            {trained:>16,} parameters, trained (rank {model.lora_rank})"
            )
        others = {"vae": found.vae} if found.vae else {}
        lines += [
            f"  {part:<19} {_parameters(build()):>16,} parameters"
            for part, build in (others | found.encoders).items()
        ]
        return lines

    def operations(self) -> str:
        """Of an evaluation and of an iteration, as they are computed: recomputation included."""
        one = self.forward.flops / self.batches.rollout
        both = self.update.flops / self.batches.update
        config = self.config
        cost = run_cost(config)
        total = (cost.forward - cost.backward) * one + cost.backward * both
        return (
            f"  {one / 1e12:.4g} TFLOP per evaluation, {both / 1e12:.4g} with its backward; "
            f"{total / config.iterations / 1e15:.4g} PFLOP per iteration, {total / 1e18:.4g} EFLOP "
            "in all"
        )

    def memory(self) -> list[str]:
        """Memory per rank, item by item."""
        kept, phases = self.kept(), self.phases()
        total = sum(item.bytes for item in kept)
        ranks = self.ranks
        how = "one rank"
        if ranks.size > 1:
            how = f"{ranks.size} ranks, " + (
                "sharded by FSDP2" if ranks.sharded else "a copy on each"
            )
        lines = [f"Memory per rank ({how})", f"  {'all the time':<52}{'GiB':>8}"]
        lines += [_line(f"  {item.label}", item.bytes) for item in kept]
        for phase, items in phases.items():
            lines.append(f"  {phase}")
            lines += [_line(f"  {name}", size) for name, size in items.items()]
        peaks = {phase: total + sum(items.values()) for phase, items in phases.items()}
        for phase, items in self.before().items():
            lines.append(f"  {phase}")
            lines += [_line(f"  {name}", size) for name, size in items.items()]
            peaks[phase] = sum(items.values())
        worst = max(peaks, key=lambda phase: peaks[phase])
        again = self.config.compute.gradient_checkpointing
        return [
            *lines,
            _line(f"peak ({worst})", peaks[worst]),
            *self._too_much(peaks[worst]),
            f"  {'memory of the host, for every rank on it':<52}{'GiB':>8}",
            *(_line(f"  {name}", size) for name, size in self.host().items()),
            "  A pass is traced on tensors without data and every tensor is counted while it lives"
            + ("; checkpointed blocks are computed again." if again else "."),
            "  Not counted: fragments and workspaces (leave a tenth free), activations of text "
            "encoders and rewards" + self._unknown_rewards() + ".",
        ]

    def _too_much(self, peak: int) -> list[str]:
        if peak <= _LARGE or self.ranks.sharded:
            return []
        return ["  more than a GPU of 80 GB has; with --processes N --sharded it is divided by N"]

    def kept(self) -> list[Item]:
        """What is on the device from the first update to the end of the run."""
        config, share = self.config, self._share
        frozen, trained = self.weights
        element = self._element
        vae, rewards = ({}, {}) if config.compute.offload else (self._vae("VAE"), _rewards(config))
        items: list[Item] = []
        if config.model.train == "lora":
            items += [
                Item("model", f"weights, frozen, {_name(element)}", share(frozen * element)),
                Item("model", "adapters, float32", share(trained * _FULL)),
            ]
        else:
            whole = share(trained * _FULL)
            items.append(Item("model", "weights, float32 (the master weights)", whole))
            if config.objective.kl_weight:
                items.append(Item("model", "the reference model, float32", whole))
                if vae:  # the reference is a second policy with all that it has
                    items += _items("model", self._vae("VAE of the reference model"))
        moments = (
            "two moments of AdamW" if config.optimizer.name == "adamw" else "optimizer, as AdamW"
        )
        return [
            *items,
            Item("model", "averaged weights, float32", share(trained * _FULL)),
            Item("training", "gradients, float32", share(trained * _FULL)),
            Item("training", f"{moments}, float32", share(2 * trained * _FULL)),
            *_items("model", vae),
            *_items("rewards", rewards),
        ]

    def phases(self) -> dict[str, dict[str, int]]:
        """Bytes that come on top for a while, by phase and item."""
        config, batches, shape = self.config, self.batches, self.architecture.latent_shape
        group, prompts, block = config.rollout.group_size, batches.prompts, batches.block
        latent = math.prod(shape) * _FULL
        plan = make_plan(config.sampler, config.make_window().steps_at(0))
        own = 1 if config.rollout.noise == "shared" else group
        text = sum(_bytes(value) for value in self.architecture.conditioning(1).values())
        window = (
            latent
            * prompts
            * (
                len(plan.window)
                * 3
                * group
                # Images that differ in their steps are judged from one stack of all steps.
                * (2 if config.trained_per_image < config.window.size else 1)
                + group
            )
        )
        sampling = latent * block * (own + (len(plan.sde) + 4) * group) + text * block * group
        gathered = self._gathered()
        found = {
            "sampling": {
                f"a forward of {self._latents(batches.rollout)}": self.forward.peak,
                "noise, latents and prompts of the samples": sampling,
                "samples of the window": window,
                **gathered,
            },
            f"update ({'with' if config.compute.gradient_checkpointing else 'without'} gradient "
            "checkpointing)": {
                f"forward and backward of {self._latents(batches.update)}": update_peak(
                    self.update, self.reference
                ),
                **self._conflict(),
                "samples of the window, images": window + self._images(),
                **gathered,
                **self._summing(),
            },
        }
        if self.decode is not None:
            found["decoding"] = {
                **self._moved_vae(),
                f"decoding {batches.decode} latents": self.decode.peak,
                "samples of the window, images": window + self._images(),
            }
        found["evaluating"] = self._evaluating()
        if config.compute.offload and (networks := _rewards(config)):
            largest = max(networks, key=lambda name: networks[name])
            found["scoring"] = {
                largest: networks[largest],
                "samples of the window, images": window + self._images(),
            }
        return found

    def before(self) -> dict[str, dict[str, int]]:
        """Bytes before the first iteration, when nothing else is there, by phase and item."""
        config, (frozen, trained) = self.config, self.weights
        element, full = self._element, config.model.train == "full"
        whole = frozen * element + trained * _FULL
        model = sum(item.bytes for item in self.kept() if item.kind == "model")
        vae = {} if config.compute.offload else self._vae("VAE")
        found = {}
        if self.ranks.sharded:
            found["while the network is loaded, before it is sharded"] = {
                f"the whole network, {_name(_FULL if full else element)}": whole,
                **vae,
            }
            if full and config.objective.kl_weight:
                found["while the reference model is loaded, before it is sharded"] = {
                    "shards of the network and of its average": 2 * self._share(whole),
                    "the whole reference model, float32": whole,
                    **{f"{name}, twice": 2 * size for name, size in vae.items()},
                }
        if self.architecture.encoders:
            found["while prompts are encoded, before training"] = {
                "network, its average and the VAE": model,
                f"text encoders, {_name(element)}": sum(self._encoders().values()),
            }
        return found

    def host(self) -> dict[str, int]:
        """Bytes of the memory of the CPU, by what needs them; not all at once."""
        config, (frozen, trained) = self.config, self.weights
        found = {
            "the network, while it is loaded": frozen * self._element + trained * _FULL,
            "a checkpoint being written, on the first rank": 4 * trained * _FULL,
        }
        if self.architecture.encoders:
            found["the largest text encoder, while it is loaded"] = max(self._encoders().values())
        if config.compute.offload:
            waiting = sum((self._vae("VAE") | _rewards(config)).values())
            found["VAE and networks of rewards that wait (offload)"] = waiting
        return found

    @property
    def _element(self) -> int:
        """Bytes of a number of what is not trained."""
        return 2 if self.config.compute.precision == "bf16" else _FULL

    def _vae(self, name: str) -> dict[str, int]:
        if self.architecture.vae is None:
            return {}
        size = _parameters(self.architecture.vae()) * self._element
        return {f"{name}, {_name(self._element)}": size}

    def _encoders(self) -> dict[str, int]:
        encoders = self.architecture.encoders
        return {part: _parameters(build()) * self._element for part, build in encoders.items()}

    def _latents(self, count: int) -> str:
        guided = (self.config.model.cfg or 1.0) > 1
        return f"{count} latents" + f" ({2 * count} with guidance)" * guided

    def _evaluating(self) -> dict[str, int]:
        """The largest part of an evaluation: a slice is sampled, decoded and scored."""
        config, batches = self.config, self.batches
        height, width = self.architecture.image
        latent = math.prod(self.architecture.latent_shape) * _FULL
        parts = [
            {f"sampling {self._latents(batches.evaluation)}": self.evaluation.peak}
            | self._gathered()
        ]
        if self.evaluation_decode is not None:
            decoding = {f"decoding {batches.evaluation} latents": self.evaluation_decode.peak}
            parts.append(self._moved_vae() | decoding)
        if config.compute.offload:
            parts += [{name: size} for name, size in _rewards(config).items()]
        return {
            **max(parts, key=lambda part: sum(part.values())),
            "noise of a slice and latents of a batch": latent * (batches.held + batches.evaluation),
            "images of a slice, in parts and joined": 2 * batches.held * 3 * height * width * _FULL,
        }

    def _share(self, size: int) -> int:
        return math.ceil(size / self.ranks.size) if self.ranks.sharded else size

    def _images(self) -> int:
        height, width = self.architecture.image
        return self.batches.prompts * self.config.rollout.group_size * 3 * height * width * _FULL

    def _moved_vae(self) -> dict[str, int]:
        return self._vae("VAE") if self.config.compute.offload else {}

    def _conflict(self) -> dict[str, int]:
        """Copies of gradients that `update.Conflict` compares."""
        slots, config = self.config.trained_per_image, self.config
        if not config.health.gradient_conflict or slots < 2 or slots < config.window.size:
            return {}
        copies = 2 if slots == 2 else 3
        size = self._share(copies * self.weights[1] * _FULL)
        return {f"gradient conflict, {copies} more gradients": size}

    def _gathered(self) -> dict[str, int]:
        """Whole blocks on a rank that otherwise has a shard of each."""
        if not self.ranks.sharded:
            return {}
        element, largest = self._element, self.largest_block
        return {
            "gathered blocks and their gradients": _GATHERED * largest * 2 * element
            + largest * _FULL
        }

    def _summing(self) -> dict[str, int]:
        if self.ranks.size == 1 or self.ranks.sharded:
            return {}
        return {"buffers of the sum over ranks": min(2 * _BUCKET, 2 * self.weights[1] * _FULL)}

    def _unknown_rewards(self) -> str:
        names = [*self.config.rewards.train, *self.config.rewards.held_out]
        unknown = [n for n in names if n not in REWARD_NETWORKS]
        return f", and whatever {', '.join(unknown)} may keep on the device" if unknown else ""


def update_peak(update: Footprint, reference: Footprint | None) -> int:
    """The most bytes in an update: the reference model's forward comes between the forward, which
    leaves its activations behind, and the backward."""
    return max(update.peak, update.saved + (reference.peak if reference else 0))


def policy_of(config: RunConfig, found: Architecture) -> Policy:
    """The policy on the meta device with its adapters, as `policy.make_policy` has it."""
    policy = found.policy(found.vae() if found.vae else None)
    if config.model.train == "lora":
        if config.compute.precision == "bf16":
            nn.Module.to(policy.network, torch.bfloat16)
        add_lora(policy.network, config.model, config.seed)
    if config.compute.gradient_checkpointing:
        policy.network.enable_gradient_checkpointing()  # type: ignore[operator]
    return policy


def _trace(
    config: RunConfig, found: Architecture, policy: Policy, as_on: str, rows: int, gradient: bool
) -> Footprint:
    def prepare() -> Pass:
        # What a policy keeps beside its networks goes to the device of the trace.
        for name, value in vars(policy).items():
            if isinstance(value, Tensor):
                setattr(policy, name, torch.zeros(value.shape, dtype=value.dtype))
        latents, text = torch.zeros(rows, *found.latent_shape), found.conditioning(rows)
        return lambda: policy.velocity(latents, 0.5, text)

    bf16 = config.compute.precision == "bf16"
    with warnings.catch_warnings():
        # Of rms_norm, whose weights may be in another dtype than its input.
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        return footprint([policy.network], prepare, gradient, bf16, as_on)


def _decode(config: RunConfig, found: Architecture, as_on: str, rows: int) -> Footprint:
    assert found.vae is not None
    vae = found.vae()
    if config.compute.precision == "bf16":
        nn.Module.to(vae, torch.bfloat16)
    policy = found.policy(vae)

    def prepare() -> Pass:
        latents = torch.zeros(rows, *found.latent_shape)
        return lambda: policy.decode(latents)

    return footprint([vae], prepare, False, as_on=as_on)


def blocks(network: nn.Module) -> list[nn.Module]:
    """What FSDP2 gathers at a time: the children of the outermost lists, as in `Ranks.shard`."""
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found or [network]


def _rewards(config: RunConfig) -> dict[str, int]:
    found = {}
    for name in dict.fromkeys([*config.rewards.train, *config.rewards.held_out]):
        build = REWARD_NETWORKS.get(name)
        if build is not None:
            found[f"reward {name}, float32"] = _parameters(build()) * _FULL
    return found


def _evaluations(config: RunConfig, ranks: Ranks) -> list[str]:
    """Evaluations of the network per iteration."""
    first, cost = iteration_cost(config, 0), run_cost(config)
    forward, backward = (n / config.iterations for n in (cost.forward, cost.backward))
    guided = (config.model.cfg or 1.0) > 1
    lines = [
        f"Evaluations of the network per iteration, {config.rollout.prompts} prompts x "
        f"{config.rollout.group_size} images" + (f", over {ranks.size} ranks" * (ranks.size > 1)),
        f"  in the first iteration {first.forward:,}, {first.backward:,} of them with gradient",
        f"  on average {forward:,.1f}, {backward:,.1f} of them with gradient",
        f"  {2 if guided else 1} forward{'s' if guided else ''} per evaluation"
        + (" (classifier-free guidance)" if guided else ""),
    ]
    prompts = _held_out(config)
    if prompts:
        steps, images = config.evaluation.steps, config.evaluation.images_per_prompt
        lines.append(
            f"  in an evaluation, every {config.evaluation.every} iterations, "
            f"{prompts * images * steps:,}"
        )
        final = config.evaluation.final_images_per_prompt
        if final is not None:
            lines.append(f"  in the last evaluation {prompts * final * steps:,}")
    return lines


def _held_out(config: RunConfig) -> int | None:
    """Prompts of an evaluation; None where only the model knows them."""
    if config.evaluation.prompts:
        return config.evaluation.prompts
    if config.prompts.held_out is not None:
        if not Path(config.prompts.held_out).expanduser().exists():
            warnings.warn(
                f"prompts.held_out: there is no {config.prompts.held_out} yet, so that the work of "
                "an evaluation is unknown",
                stacklevel=2,
            )
            return None
        return len(read_prompts(Path(config.prompts.held_out)))
    if config.model.name == "scenes":
        from mixgrpo.scenes.prompts import held_out_prompts

        return len(held_out_prompts())
    return None


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _name(element: int) -> str:
    return {2: "bfloat16", _FULL: "float32"}[element]


def _line(name: str, size: int) -> str:
    return f"  {name:<52}{_gib(size):>8}"


def _gib(size: int) -> str:
    value = size / 2**30
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
