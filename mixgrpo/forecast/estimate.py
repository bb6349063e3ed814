"""What a run will cost, in words and before anything is loaded: parameters, memory, evaluations.

Shapes come from the model's config files (`architecture`), batch sizes from the settings
(`batches`), memory and operations of a pass from a trace without data (`passes`, `footprint`); the
rest is counted as the trainer makes it (`memory`). On a CPU the activations that a forward keeps
are predicted within 2 %, and the peak of a pass within 10 % (tests). Not included is what cannot be
known here: fragmentation of the allocator, workspaces of libraries, activations of text encoders
and rewards. Leave a tenth of the device free for them.
"""

from mixgrpo.compute.ranks import Ranks
from mixgrpo.forecast.architecture import architecture
from mixgrpo.forecast.batches import held_out_count
from mixgrpo.forecast.memory import FP32, Estimate, element_size
from mixgrpo.forecast.passes import parameter_count, policy_of
from mixgrpo.forecast.reward_sizes import REWARD_NETWORKS
from mixgrpo.sampling.plan import iteration_cost, run_cost
from mixgrpo.settings.config import RunConfig

_LARGE_GPU = 80 * 10**9
"""Bytes of the GPUs that the presets are for."""


def describe(config: RunConfig, ranks: Ranks, as_on: str = "cuda") -> str:
    """What `config` will take on `ranks`, as text. `as_on`: as for `footprint`.

    ConfigError where the model's files are missing or are not those of such a model.
    """
    model = architecture(config)
    evaluations = _evaluations(config, ranks)
    if isinstance(model, str):
        return "\n".join([*evaluations, "", f"Memory: {model}."])
    estimate = Estimate.of(config, model, ranks, as_on)
    return "\n".join(
        [*_about(estimate), "", *evaluations, _operations(estimate), "", *memory_lines(estimate)]
    )


def least_memory(config: RunConfig) -> tuple[int, int] | None:
    """Bytes that a run of one process needs whatever its batches are: on its device, of weights,
    their average, gradients and AdamW's moments; and on the disk, of one checkpoint.

    None where the model's sizes are not known here. Nothing is traced.
    """
    model = architecture(config)
    if isinstance(model, str):
        return None
    parameters = list(policy_of(config, model).network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    frozen = sum(p.numel() for p in parameters) - trained
    moments = 2 if config.optimizer.name == "adamw" else 0
    device = frozen * element_size(config) + (3 + moments) * trained * FP32
    return device, 4 * trained * FP32


def _about(estimate: Estimate) -> list[str]:
    """The model and its parameters."""
    architecture, (frozen, trained) = estimate.architecture, estimate.weights
    model = estimate.config.model
    height, width = architecture.image
    lora = model.train == "lora"
    lines = [
        f"Model {model.name}, {height} x {width} pixels, from {architecture.source}",
        f"  network             {frozen if lora else trained:>16,} parameters"
        + (", frozen" if lora else ", all trained"),
    ]
    if lora:
        lines.append(
            f"  adapters            {trained:>16,} parameters, trained (rank {model.lora_rank})"
        )
    others = {"vae": architecture.vae} if architecture.vae else {}
    lines += [
        f"  {part:<19} {parameter_count(build()):>16,} parameters"
        for part, build in (others | architecture.encoders).items()
    ]
    return lines


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
    prompts = held_out_count(config)
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


def _operations(estimate: Estimate) -> str:
    """Operations of an evaluation and of an iteration, recomputed activations included."""
    one = estimate.forward.flops / estimate.batches.rollout
    both = estimate.update.flops / estimate.batches.update
    cost = run_cost(estimate.config)
    total = (cost.forward - cost.backward) * one + cost.backward * both
    per_iteration = total / estimate.config.iterations
    return (
        f"  {one / 1e12:.4g} TFLOP per evaluation, {both / 1e12:.4g} with its backward; "
        f"{per_iteration / 1e15:.4g} PFLOP per iteration, {total / 1e18:.4g} EFLOP in all"
    )


def memory_lines(estimate: Estimate) -> list[str]:
    """Memory per rank, item by item, and its peak."""
    resident, phases = estimate.resident(), estimate.phases()
    before, total = estimate.before_training(), sum(item.bytes for item in resident)
    ranks = estimate.ranks
    how = "one rank"
    if ranks.size > 1:
        how = f"{ranks.size} ranks, " + ("sharded by FSDP2" if ranks.sharded else "a copy on each")
    lines = [f"Memory per rank ({how})", f"  {'all the time':<52}{'GiB':>8}"]
    lines += [_line(f"  {item.label}", item.bytes) for item in resident]
    for phase, items in (phases | before).items():
        lines.append(f"  {phase}")
        lines += [_line(f"  {label}", size) for label, size in items.items()]
    peaks = {phase: total + sum(items.values()) for phase, items in phases.items()}
    peaks |= {phase: sum(items.values()) for phase, items in before.items()}
    worst = max(peaks, key=lambda phase: peaks[phase])
    lines.append(_line(f"peak ({worst})", peaks[worst]))
    if peaks[worst] > _LARGE_GPU and not ranks.sharded:
        lines.append(
            "  more than a GPU of 80 GB has; with --processes N --sharded it is divided by N"
        )
    again = estimate.config.compute.gradient_checkpointing
    return [
        *lines,
        f"  {'memory of the host, for every rank on it':<52}{'GiB':>8}",
        *(_line(f"  {label}", size) for label, size in estimate.host().items()),
        "  A pass is traced on tensors without data and every tensor is counted while it lives"
        + ("; checkpointed blocks are computed again." if again else "."),
        "  Not counted: fragments and workspaces (leave a tenth free), activations of text "
        "encoders and rewards" + _unknown_rewards(estimate.config) + ".",
    ]


def _unknown_rewards(config: RunConfig) -> str:
    names = [*config.rewards.train, *config.rewards.held_out]
    unknown = [n for n in names if n not in REWARD_NETWORKS]
    return f", and whatever {', '.join(unknown)} may keep on the device" if unknown else ""


def _line(label: str, size: int) -> str:
    return f"  {label:<52}{_gib(size):>8}"


def _gib(size: int) -> str:
    value = size / 2**30
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
