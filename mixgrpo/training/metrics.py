"""The numbers of a run: what a line of metrics.jsonl says of groups and updates, and eval.jsonl."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.compute.ranks import Ranks
from mixgrpo.evaluation.held_out import Evaluation
from mixgrpo.maths.advantages import has_variance
from mixgrpo.training.losses.policy import STATISTICS

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Update:
    """One policy update: statistics of this rank's forwards, and what all ranks have in common."""

    statistics: Tensor
    """[forwards, 6] on the CPU, as `STATISTICS` names the columns."""
    steps: int
    """Images times steps of all ranks."""
    norm: float
    """Of the gradient before it was clipped."""
    cosine: float | None
    """Between the gradients of the window's first and last step, where it is measured."""

    @classmethod
    def of(
        cls, parts: Iterable[Tensor], steps: int, norm: float, cosine: float | None, device: str
    ) -> "Update":
        """From the statistics [6] of every forward; there may be none on this rank."""
        none = torch.zeros(len(STATISTICS), device=device)
        rows = torch.stack([part.double() for part in (none, *parts)])
        return cls(rows.cpu(), steps, norm, cosine)

    def largest(self, name: str) -> float:
        return float(self.statistics[:, STATISTICS.index(name)].max())

    def sum(self, name: str) -> float:
        return float(self.statistics[:, STATISTICS.index(name)].sum())


def reward_metrics(rewards: dict[str, Tensor], advantages: Tensor) -> Metrics:
    """Of the rewards [P, N] by name and the advantages [P, N] of all ranks' groups."""
    line: Metrics = {}
    for name, values in rewards.items():
        line[f"reward_{name}_mean"] = float(values.mean())
        line[f"reward_{name}_std"] = float(values.std())
    informative = torch.stack([has_variance(values) for values in rewards.values()]).any(0)
    return {
        **line,
        "advantage_mean": float(advantages.mean()),
        "advantage_std": float(advantages.std()),
        "groups": len(advantages),
        "groups_without_variance": int((~informative).sum()),
    }


def update_metrics(updates: list[Update], ranks: Ranks, elements: int) -> Metrics:
    """Of an iteration's updates, over all ranks. elements: of one image's latents. A collective."""
    if not updates:  # no group had any variance in its rewards, and such groups are skipped
        names = ("ratio_max", "clip_fraction", "noise_floor", "log_ratio_sum_max")
        return dict.fromkeys((*names, "grad_norm", "loss", "kl"), 0.0)
    count, steps = len(updates), sum(u.steps for u in updates)
    here = [
        max(u.largest("ratio_distance") for u in updates),
        max(u.largest("log_prob_change") for u in updates),
        # Before the first update the policy is still that of the rollout.
        updates[0].largest("log_ratio"),
        sum(u.sum("clipped") for u in updates) / steps,
        sum(u.sum("loss") / u.steps for u in updates) / count,
        sum(u.sum("kl") / u.steps for u in updates) / count,
    ]
    of_all = ranks.gather(torch.tensor([here], dtype=torch.float64))
    ratio_max, change_max, floor = of_all[:, :3].max(0).values.tolist()
    clip_fraction, loss, kl = of_all[:, 3:].sum(0).tolist()
    cosine = updates[0].cosine
    return {
        "ratio_max": ratio_max,
        "clip_fraction": clip_fraction,
        "noise_floor": floor,
        # The density's log-ratio: log-probs are means over the elements of a latent.
        "log_ratio_sum_max": change_max * elements,
        "grad_norm": sum(u.norm for u in updates) / count,
        "loss": loss,
        "kl": kl,
        **({} if cosine is None else {"gradient_cosine": cosine}),
    }


def evaluation_metrics(iteration: int, evaluation: Evaluation, seconds: float) -> Metrics:
    """The line of eval.jsonl."""
    line: Metrics = {"iteration": iteration}
    for name, scores in evaluation.scores.items():
        line[f"reward_{name}_mean"] = float(scores.mean())
        # One image alone has no spread; NaN would not be JSON.
        line[f"reward_{name}_std"] = float(scores.std()) if scores.numel() > 1 else 0.0
    if evaluation.diversity is not None:
        line["diversity"] = float(evaluation.diversity.mean())
    line["prompts"] = len(evaluation.prompts)
    line["images"] = next(iter(evaluation.scores.values())).numel()
    line["seconds_total"] = seconds
    return line
