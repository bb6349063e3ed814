"""The training loop: Algorithm 1 of MixGRPO, one iteration at a time.

Holds what changes (weights, their average, the optimizer) and turns an iteration's number into its
metrics. Files, resuming and stopping are `train`'s work.
"""

import math
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mixgrpo.advantages import group_advantages, has_variance
from mixgrpo.config import RunConfig
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.evaluate import Evaluation, choose, evaluate, evaluation_noise, score
from mixgrpo.models import Conditioning, load_model
from mixgrpo.objective import LossStats, grpo_loss
from mixgrpo.plan import Plan, make_plan
from mixgrpo.randomness import normal, permutation
from mixgrpo.rewards import load_reward
from mixgrpo.rollout import CountedVelocity, Rollout, WindowStep, repeat, replay, rollout
from mixgrpo.steps import gaussian_kl, log_prob

Metrics = dict[str, float | int]


class Trainer:
    """One run in memory. Every method is a function of its state and the iteration's number."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config = config
        self.device = device
        self.policy = load_model(config.model.name, config.model.checkpoint, device)
        self.velocity = CountedVelocity(self.policy.velocity)
        self.parameters = self.policy.trainable_parameters()
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        o = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), o.lr, o.betas, weight_decay=o.weight_decay, fused=True
        )
        # The reference of the KL is the model that training starts from.
        self.reference = (
            CountedVelocity(load_model(config.model.name, config.model.checkpoint, device).velocity)
            if config.objective.kl_weight
            else None
        )
        self.window = config.make_window()
        self._warned_of_noise = False
        self.train_rewards = {k: load_reward(k) for k in config.rewards.train}
        self.all_rewards = [
            *self.train_rewards.values(),
            *(load_reward(k) for k in config.rewards.held_out),
        ]
        self.train_prompts = self.policy.train_prompts()
        if len(self.train_prompts) < config.rollout.prompts:
            raise ConfigError(
                f"rollout.prompts: {config.rollout.prompts} prompts per iteration, but "
                f"{config.model.name} has {len(self.train_prompts)} to train on"
            )
        held_out = self.policy.held_out_prompts()
        self.held_out = choose(held_out, config.evaluation.prompts)

    def iterate(self, iteration: int) -> Metrics:
        """Sample, score, update: one iteration. Returns its line of metrics.jsonl.

        RunError where a reward fails or a number is not finite; the weights are then those of
        before the update that would have spoiled them.
        """
        config, clock = self.config, _Clock(self.device)
        plan = make_plan(config.sampler, self.window.steps_at(iteration))
        forward_before = self._evaluations()

        prompts = self._prompts_at(iteration)
        conditioning = self.policy.encode(prompts)
        sampled = self._sample(iteration, plan, prompts, conditioning)
        clock.lap("rollout")
        with torch.no_grad():
            images = self.policy.decode(sampled.latents.flatten(0, 1))
        clock.lap("decode")
        group = config.rollout.group_size
        repeated = [p for p in prompts for _ in range(group)]
        rewards = {
            name: score(reward, images, repeated).unflatten(0, (-1, group))
            for name, reward in self.train_rewards.items()
        }
        clock.lap("reward")
        raw = group_advantages(rewards, config.rewards.train, config.rewards.aggregate)
        limit = config.objective.advantage_clip
        advantages = raw.clamp(-limit, limit).to(self.device)
        forward_rollout = self.velocity.evaluations
        update = self._update(iteration, sampled, advantages, conditioning)
        clock.lap("update")

        line: Metrics = {
            "iteration": iteration,
            "window_start": self.window.start_at(iteration),
            "window_size": self.window.size,
        }
        for name, values in rewards.items():
            line[f"reward_{name}_mean"] = float(values.mean())
            line[f"reward_{name}_std"] = float(values.std())
        informative = torch.stack([has_variance(values) for values in rewards.values()]).all(0)
        return {
            **line,
            "advantage_mean": float(raw.mean()),
            "advantage_std": float(raw.std()),
            "groups_without_variance": int((~informative).sum()),
            **update,
            "nfe_rollout": plan.steps,
            "nfe_train": len(plan.window),
            "evaluations_computed": self._evaluations() - forward_before,
            "backward_computed": self.velocity.evaluations - forward_rollout,
            **clock.seconds(),
            "memory_peak_bytes": _memory_peak(self.device),
        }

    def evaluate(self) -> Evaluation:
        """Held-out prompts with the averaged weights, by the ODE from noise fixed per seed."""
        config = self.config
        noise = evaluation_noise(
            config.seed,
            self.held_out,
            config.evaluation.images_per_prompt,
            self.policy.latent_shape,
        ).to(self.device)
        with self._averaged():
            return evaluate(
                self.policy,
                self.policy.velocity,
                self.all_rewards,
                self.held_out,
                noise,
                config.evaluation.steps,
                config.evaluation.shift,
            )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state that a checkpoint must hold, by group and name."""
        moments = {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {"weights": dict(self.parameters), "average": self.average, "optimizer": moments}

    def load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take over the state of a checkpoint of the same model. RunError for another's."""
        weights, average = tensors["weights"], tensors["average"]
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != parameter.shape:
                raise RunError(f"the checkpoint is of another model: {name} does not fit")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])
                self.average[name].copy_(average[name])
        for key, value in tensors["optimizer"].items():
            name, _, moment = key.rpartition("/")
            state = self.optimizer.state[self.parameters[name]]
            state[moment] = value.to(self.parameters[name].device)

    def _prompts_at(self, iteration: int) -> list[str]:
        """The prompts of an iteration: each epoch a new order, a last partial batch left out."""
        count, available = self.config.rollout.prompts, len(self.train_prompts)
        epoch, batch = divmod(iteration, available // count)
        order = permutation(available, "prompts", self.config.seed, epoch)
        return [self.train_prompts[i] for i in order[batch * count : (batch + 1) * count]]

    def _sample(
        self, iteration: int, plan: Plan, prompts: list[str], conditioning: Conditioning
    ) -> Rollout:
        config, shape = self.config, self.policy.latent_shape
        name = (config.seed, iteration)
        initial = torch.stack([normal(shape, "initial", *name, p) for p in prompts])
        group, drawn = config.rollout.group_size, (len(plan.window), *shape)
        noise = torch.stack(
            [normal(drawn, "steps", *name, p, i) for p in prompts for i in range(group)]
        )
        return rollout(
            self.velocity,
            plan,
            conditioning,
            initial.to(self.device),
            noise.unflatten(0, (len(prompts), group)).to(self.device),
            chunk=group // config.objective.updates,
        )

    def _update(
        self, iteration: int, sampled: Rollout, advantages: Tensor, conditioning: Conditioning
    ) -> Metrics:
        """Policy updates of one iteration, each on some images of every group."""
        objective, group = self.config.objective, self.config.rollout.group_size
        size = group // objective.updates
        chunked = repeat(conditioning, size)
        losses, kls, norms, stats = [], [], [], []
        for begin in range(0, group, size):
            images = slice(begin, begin + size)
            self.optimizer.zero_grad()
            for step in sampled.window:
                loss, kl, stat = self._step_loss(
                    sampled.plan, step, images, advantages, conditioning, chunked
                )
                ((loss + objective.kl_weight * kl) / len(sampled.window)).backward()
                losses.append(loss.detach())
                kls.append(kl.detach())
                stats.append(stat)
            norm = torch.nn.utils.clip_grad_norm_(
                self.parameters.values(), self.config.optimizer.max_grad_norm
            )
            if not bool(norm.isfinite()):
                raise RepeatableError(
                    f"iteration {iteration}: the gradient is not finite (norm {float(norm)}); "
                    "a smaller optimizer.lr or sampler.eta usually helps"
                )
            norms.append(norm)
            self.optimizer.step()
            self._move_average()
        ratios, clipped, deltas = (torch.stack(values) for values in zip(*stats, strict=True))
        noise_floor = float(deltas[: len(sampled.window)].max())
        self._check_noise(iteration, noise_floor)
        return {
            "ratio_max": float(ratios.max()),
            "clip_fraction": float(clipped.mean()),
            "noise_floor": noise_floor,
            # The density's own log-ratio: log-probs are means over the elements of a latent.
            "log_ratio_sum_max": float(deltas.max()) * math.prod(self.policy.latent_shape),
            "grad_norm": float(torch.stack(norms).mean()),
            "loss": float(torch.stack(losses).mean()),
            "kl": float(torch.stack(kls).mean()),
        }

    def _step_loss(
        self,
        plan: Plan,
        step: WindowStep,
        images: slice,
        advantages: Tensor,
        conditioning: Conditioning,
        chunked: Conditioning,
    ) -> tuple[Tensor, Tensor, LossStats]:
        """Loss [] and KL [] of one window step for some images of every group."""
        today = replay(self.velocity, plan, step, images, conditioning, chunked)
        new = log_prob(step.sample[:, images].flatten(0, 1), today.mean, today.std)
        loss, stats = grpo_loss(
            new,
            step.log_prob[:, images].flatten(),
            advantages[:, images].flatten(),
            self.config.objective.clip_range,
        )
        if self.reference is None:
            return loss, torch.zeros_like(loss), stats
        with torch.no_grad():
            base = replay(self.reference, plan, step, images, conditioning, chunked)
        return loss, gaussian_kl(today.mean, base.mean, today.std).mean(), stats

    def _evaluations(self) -> int:
        """Network evaluations so far, those of the reference model included."""
        reference = self.reference.evaluations if self.reference else 0
        return self.velocity.evaluations + reference

    def _check_noise(self, iteration: int, floor: float) -> None:
        """Warn, once, where numerical noise alone would clip: the update then learns from it."""
        clip = self.config.objective.clip_range
        if floor > clip and not self._warned_of_noise:
            self._warned_of_noise = True
            warnings.warn(
                f"iteration {iteration}: objective.clip_range {clip:g} lies below the numerical "
                f"noise of the log-probs ({floor:.1e} before any update); raise it, or compute in "
                "higher precision",
                stacklevel=2,
            )

    @torch.no_grad()
    def _move_average(self) -> None:
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - self.config.optimizer.ema_decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights."""
        own = {k: p.detach().clone() for k, p in self.parameters.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])


class _Clock:
    """Seconds per phase of one iteration; waits for the device only at the end of a phase."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._begin = self._last = self._now()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = self._now()
        self._laps[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        total = self._now() - self._begin
        named = {f"seconds_{phase}": value for phase, value in self._laps.items()}
        other = total - sum(self._laps.values())
        return {**named, "seconds_other": other, "seconds_total": total}

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _memory_peak(device: str) -> int:
    """Bytes: of the device where there is one, else the process's largest resident size."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
