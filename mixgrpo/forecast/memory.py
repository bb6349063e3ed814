"""How many bytes a run takes on a device and on its host, and in which phase.

Every quantity is in bytes per rank. How they are put into words is `estimate`'s work.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mixgrpo.compute.ranks import Ranks
from mixgrpo.forecast.architecture import Architecture
from mixgrpo.forecast.batches import Batches
from mixgrpo.forecast.footprint import Footprint
from mixgrpo.forecast.passes import (
    blocks,
    parameter_count,
    policy_of,
    trace_decoding,
    trace_velocity,
)
from mixgrpo.forecast.reward_sizes import REWARD_NETWORKS
from mixgrpo.sampling.plan import make_plan
from mixgrpo.settings.config import RunConfig

FP32 = 4
"""Bytes of a number in float32."""
_GATHERED = 2
"""Blocks whose weights FSDP2 holds whole at a time: the current one and the next."""
_BUCKET = 2**28
"""Bytes of gradients that are summed over ranks together (`Ranks.sum_gradients`)."""


@dataclass(frozen=True)
class Item:
    """Something that stays in a device's memory."""

    kind: Literal["model", "training", "rewards"]
    """`model`: it is there before the first iteration too."""
    label: str
    bytes: int


def element_size(config: RunConfig) -> int:
    """Bytes of a number of frozen weights."""
    return 2 if config.compute.precision == "bf16" else FP32


def update_peak(update: Footprint, reference: Footprint | None) -> int:
    """The most bytes in an update: the reference model's forward comes between the forward, whose
    activations are kept, and the backward."""
    return max(update.peak, update.saved + (reference.peak if reference else 0))


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
    """A forward of a rollout's largest batch."""
    update: Footprint
    """Forward and backward of an update's largest batch."""
    reference: Footprint | None
    """A forward of the reference model on that batch; None without a KL term."""
    evaluation: Footprint
    """A forward of an evaluation's batch."""
    decode: Footprint | None
    """Decoding a rollout's batch; None for a model without a VAE."""
    evaluation_decode: Footprint | None

    @classmethod
    def of(
        cls, config: RunConfig, architecture: Architecture, ranks: Ranks, as_on: str
    ) -> "Estimate":
        """Trace the passes of `config` on `ranks`. `as_on`: as for `footprint`."""
        batches = Batches.of(config, ranks.size)
        policy = policy_of(config, architecture)
        numbers = [(p.numel(), p.requires_grad) for p in policy.network.parameters()]
        if config.compute.precision == "bf16" and ranks.sharded:
            # FSDP2's mixed precision gathers the weights in bfloat16.
            nn.Module.to(policy.network, torch.bfloat16)
        trace = partial(trace_velocity, config, architecture, policy, as_on)
        decode = (
            partial(trace_decoding, config, architecture, as_on)
            if architecture.vae
            else lambda _: None
        )
        return cls(
            config,
            architecture,
            ranks,
            (
                sum(n for n, trained in numbers if not trained),
                sum(n for n, trained in numbers if trained),
            ),
            max(parameter_count(block) for block in blocks(policy.network)),
            batches,
            forward=trace(batches.rollout, False),
            update=trace(batches.update, True),
            reference=trace(batches.update, False) if config.objective.kl_weight else None,
            evaluation=trace(batches.evaluation, False),
            decode=decode(batches.decode),
            evaluation_decode=decode(batches.evaluation),
        )

    # ---- Phases -------------------------------------------------------------------------------

    def resident(self) -> list[Item]:
        """What stays on the device from the first update to the end of the run."""
        config, share = self.config, self._share
        frozen, trained = self.weights
        element = element_size(config)
        vae: dict[str, int] = {}
        rewards: dict[str, int] = {}
        if not config.compute.offload:
            vae, rewards = self._vae("VAE"), reward_networks(config)
        items: list[Item] = []
        if config.model.train == "lora":
            items += [
                Item("model", f"weights, frozen, {dtype_name(element)}", share(frozen * element)),
                Item("model", "adapters, float32", share(trained * FP32)),
            ]
        else:
            whole = share(trained * FP32)
            items.append(Item("model", "weights, float32 (the master weights)", whole))
            if config.objective.kl_weight:
                items.append(Item("model", "the reference model, float32", whole))
                if vae:  # the reference is a second policy with all its parts
                    items += _items("model", self._vae("VAE of the reference model"))
        moments = (
            "two moments of AdamW" if config.optimizer.name == "adamw" else "optimizer, as AdamW"
        )
        return [
            *items,
            Item("model", "averaged weights, float32", share(trained * FP32)),
            Item("training", "gradients, float32", share(trained * FP32)),
            Item("training", f"{moments}, float32", share(2 * trained * FP32)),
            *_items("model", vae),
            *_items("rewards", rewards),
        ]

    def phases(self) -> dict[str, dict[str, int]]:
        """What each phase of an iteration or evaluation takes on top of `resident`: bytes by phase
        and label."""
        config, batches = self.config, self.batches
        group, block = config.rollout.group_size, batches.block
        latent = math.prod(self.architecture.latent_shape) * FP32
        plan = make_plan(config.sampler, config.make_window().steps_at(0))
        noises = 1 if config.rollout.noise == "shared" else group
        text = sum(_bytes(value) for value in self.architecture.conditioning(1).values())
        # Images that differ in their trained steps are judged from one stack of all steps.
        stacks = 2 if config.trained_per_image < config.window.size else 1
        per_image = len(plan.window) * 3 * stacks + 1
        window = latent * batches.prompts * group * per_image
        sampling = latent * block * (noises + (len(plan.sde) + 4) * group) + text * block * group
        gathered = self._gathered()
        checkpointing = "with" if config.compute.gradient_checkpointing else "without"
        window_and_images = {"samples of the window, images": window + self._images()}
        phases = {
            "sampling": {
                f"a forward of {self._latents(batches.rollout)}": self.forward.peak,
                "noise, latents and prompts of the samples": sampling,
                "samples of the window": window,
                **gathered,
            },
            f"update ({checkpointing} gradient checkpointing)": {
                f"forward and backward of {self._latents(batches.update)}": update_peak(
                    self.update, self.reference
                ),
                **self._gradient_copies(),
                **window_and_images,
                **gathered,
                **self._sum_buffers(),
            },
        }
        if self.decode is not None:
            phases["decoding"] = {
                **self._moved_vae(),
                f"decoding {batches.decode} latents": self.decode.peak,
                **window_and_images,
            }
        phases["evaluating"] = self._evaluating()
        if config.compute.offload and (networks := reward_networks(config)):
            largest = max(networks, key=lambda name: networks[name])
            phases["scoring"] = {largest: networks[largest], **window_and_images}
        return phases

    def before_training(self) -> dict[str, dict[str, int]]:
        """What the phases before the first iteration take in all, bytes by phase and label."""
        config, (frozen, trained) = self.config, self.weights
        element, full = element_size(config), config.model.train == "full"
        whole = frozen * element + trained * FP32
        model = sum(item.bytes for item in self.resident() if item.kind == "model")
        vae = {} if config.compute.offload else self._vae("VAE")
        phases = {}
        if self.ranks.sharded:
            phases["while the network is loaded, before it is sharded"] = {
                f"the whole network, {dtype_name(FP32 if full else element)}": whole,
                **vae,
            }
            if full and config.objective.kl_weight:
                phases["while the reference model is loaded, before it is sharded"] = {
                    "shards of the network and of its average": 2 * self._share(whole),
                    "the whole reference model, float32": whole,
                    **{f"{name}, twice": 2 * size for name, size in vae.items()},
                }
        if self.architecture.encoders:
            phases["while prompts are encoded, before training"] = {
                "network, its average and the VAE": model,
                f"text encoders, {dtype_name(element)}": sum(self._encoders().values()),
            }
        return phases

    def host(self) -> dict[str, int]:
        """Bytes of the host's memory, by what needs them; not all at the same time."""
        config, (frozen, trained) = self.config, self.weights
        sizes = {
            "the network, while it is loaded": frozen * element_size(config) + trained * FP32,
            "a checkpoint being written, on the first rank": 4 * trained * FP32,
        }
        if self.architecture.encoders:
            sizes["the largest text encoder, while it is loaded"] = max(self._encoders().values())
        if config.compute.offload:
            waiting = sum((self._vae("VAE") | reward_networks(config)).values())
            sizes["VAE and networks of rewards that wait (offload)"] = waiting
        return sizes

    # ---- Parts of the phases ------------------------------------------------------------------

    def _evaluating(self) -> dict[str, int]:
        """The most of what an evaluation does one after another: a slice of the images is sampled,
        decoded and scored."""
        config, batches = self.config, self.batches
        height, width = self.architecture.image
        latent = math.prod(self.architecture.latent_shape) * FP32
        parts = [
            {f"sampling {self._latents(batches.evaluation)}": self.evaluation.peak}
            | self._gathered()
        ]
        if self.evaluation_decode is not None:
            decoding = {f"decoding {batches.evaluation} latents": self.evaluation_decode.peak}
            parts.append(self._moved_vae() | decoding)
        if config.compute.offload:
            parts += [{name: size} for name, size in reward_networks(config).items()]
        return {
            **max(parts, key=lambda part: sum(part.values())),
            "noise of a slice and latents of a batch": latent * (batches.held + batches.evaluation),
            "images of a slice, in parts and joined": 2 * batches.held * 3 * height * width * FP32,
        }

    def _vae(self, label: str) -> dict[str, int]:
        if self.architecture.vae is None:
            return {}
        element = element_size(self.config)
        size = parameter_count(self.architecture.vae()) * element
        return {f"{label}, {dtype_name(element)}": size}

    def _moved_vae(self) -> dict[str, int]:
        """The VAE where it comes to the device only to decode."""
        return self._vae("VAE") if self.config.compute.offload else {}

    def _encoders(self) -> dict[str, int]:
        element, encoders = element_size(self.config), self.architecture.encoders
        return {part: parameter_count(build()) * element for part, build in encoders.items()}

    def _images(self) -> int:
        height, width = self.architecture.image
        return self.batches.prompts * self.config.rollout.group_size * 3 * height * width * FP32

    def _gradient_copies(self) -> dict[str, int]:
        """Copies of gradients that `update.Conflict` compares."""
        steps, config = self.config.trained_per_image, self.config
        if not config.health.gradient_conflict or steps < 2 or steps < config.window.size:
            return {}
        copies = 2 if steps == 2 else 3
        size = self._share(copies * self.weights[1] * FP32)
        return {f"gradient conflict, {copies} more gradients": size}

    def _gathered(self) -> dict[str, int]:
        """Whole blocks on a rank that otherwise has a shard of each."""
        if not self.ranks.sharded:
            return {}
        element, largest = element_size(self.config), self.largest_block
        size = _GATHERED * largest * 2 * element + largest * FP32
        return {"gathered blocks and their gradients": size}

    def _sum_buffers(self) -> dict[str, int]:
        if self.ranks.size == 1 or self.ranks.sharded:
            return {}
        return {"buffers of the sum over ranks": min(2 * _BUCKET, 2 * self.weights[1] * FP32)}

    def _share(self, size: int) -> int:
        return math.ceil(size / self.ranks.size) if self.ranks.sharded else size

    def _latents(self, count: int) -> str:
        guided = (self.config.model.cfg or 1.0) > 1
        return f"{count} latents" + f" ({2 * count} with guidance)" * guided


def reward_networks(config: RunConfig) -> dict[str, int]:
    """Bytes of the networks of the configured rewards whose sizes are known, by label."""
    sizes = {}
    for name in dict.fromkeys([*config.rewards.train, *config.rewards.held_out]):
        build = REWARD_NETWORKS.get(name)
        if build is not None:
            sizes[f"reward {name}, float32"] = parameter_count(build()) * FP32
    return sizes


def dtype_name(element: int) -> str:
    return {2: "bfloat16", FP32: "float32"}[element]


def _items(kind: Literal["model", "rewards"], sizes: dict[str, int]) -> list[Item]:
    return [Item(kind, label, size) for label, size in sizes.items()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
