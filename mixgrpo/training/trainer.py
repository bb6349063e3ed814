"""The training loop: Algorithm 1 of MixGRPO, one iteration at a time.

Holds what changes (weights, their average, the optimizer) and turns an iteration's number into its
metrics. Files, resuming and stopping are `train`'s work.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixgrpo.compute.clock import Clock, memory_peak
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError, RepeatableError, RunError
from mixgrpo.evaluation.held_out import Evaluation, choose, evaluate, evaluation_noise
from mixgrpo.maths.advantages import best_and_worst, group_advantages, has_variance
from mixgrpo.maths.randomness import permutation
from mixgrpo.models.load import prepare
from mixgrpo.models.policy import (
    held_out_prompts,
    make_policy,
    reference_of,
    train_prompts,
    velocity_of,
)
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import CountedVelocity
from mixgrpo.rewards.calls import check_prompts, for_training
from mixgrpo.rewards.load import load_rewards
from mixgrpo.sampling import distributions
from mixgrpo.sampling.inference import images_at_once, shift_of
from mixgrpo.sampling.plan import Plan, make_plan
from mixgrpo.sampling.rollout import rollout
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.collect import Collected, collect, decode, initial_noise
from mixgrpo.training.optimizer import (
    learning_rate,
    load_state,
    make_optimizer,
    set_learning_rate,
    state_tensors,
)
from mixgrpo.training.update import (
    Batch,
    Conflict,
    Rows,
    UnitSteps,
    drawn_steps,
    gradients,
    judge,
    make_batch,
    make_rows,
    slots_together,
    update_parts,
)

log = logging.getLogger(__name__)

Metrics = dict[str, float | int]

_SHARED_DISK_S = 60.0
"""How long a file of another machine may take until it is seen."""


class Trainer:
    """One run in memory, or this process's part of it. Every method is a function of its state and
    the iteration's number."""

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self.config = config
        self.ranks = ranks
        self.device = ranks.device
        self.policy = make_policy(config, self.device, ranks)
        self.plain_velocity = velocity_of(self.policy, config, self.device)
        self.velocity = CountedVelocity(self.plain_velocity)
        self.parameters = self.policy.trainable_parameters()
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.optimizer = make_optimizer(config.optimizer, self.parameters.values())
        self.reference = (
            CountedVelocity(reference_of(self.policy, config, self.device, ranks))
            if config.objective.kl_weight
            else None
        )
        self.window = config.make_window()
        both = [*config.rewards.train, *config.rewards.held_out]
        rewards = load_rewards(both, config.rewards, config.compute.offload)
        self.train_rewards = {name: rewards[name] for name in config.rewards.train}
        self.all_rewards = list(rewards.values())
        self.train_prompts = train_prompts(config, self.policy)
        if len(self.train_prompts) < config.rollout.prompts:
            raise ConfigError(
                f"rollout.prompts: {config.rollout.prompts} prompts per iteration, but "
                f"{config.prompts.train or config.model.name} has {len(self.train_prompts)} to "
                "train on"
            )
        self.held_out = choose(held_out_prompts(config, self.policy), config.evaluation.prompts)
        seen = set(self.held_out) & set(self.train_prompts)
        if seen and self.ranks.first:
            warnings.warn(
                f"{len(seen)} of the {len(self.held_out)} held-out prompts are also trained on, "
                f"such as {min(seen)!r}: evaluations are then no test of what was learned",
                stacklevel=2,
            )
        for reward in self.all_rewards:
            check_prompts(reward, [*self.train_prompts, *self.held_out])
        self._prepare()

    def _prepare(self) -> None:
        """Have every prompt encoded that the run will come to, so that text encoders can go."""
        if not hasattr(self.policy, "prepare"):
            return
        trained = [p for i in range(self.config.iterations) for p in self._prompts_at(i)]
        prepare(
            self.policy,
            [*self.held_out, *trained],
            log.info if self.ranks.first else log.debug,
            (self.ranks.rank, self.ranks.size),
        )
        self.ranks.wait()
        self._check_prepared([*self.held_out, *trained])

    def _check_prepared(self, prompts: list[str]) -> None:
        """ConfigError where this process does not see what the other ranks have encoded."""
        unprepared = getattr(self.policy, "unprepared", None)
        if unprepared is None:
            return
        end = time.monotonic() + _SHARED_DISK_S
        while lacking := unprepared(prompts):
            if time.monotonic() > end:
                raise ConfigError(
                    f"prompts.embeddings: {len(lacking)} prompts that were encoded are not seen by "
                    "all processes; name a folder that all machines share"
                )
            time.sleep(1.0)

    def iterate(self, iteration: int) -> Metrics:
        """Sample, score, update: one iteration. Returns its line of metrics.jsonl.

        RunError where a reward fails or a number is not finite; the weights are then those of
        before the update that would have spoiled them.
        """
        config, clock = self.config, Clock(self.device)
        plan = make_plan(config.sampler, self.window.steps_at(iteration))
        part = self._share(self._prompts_at(iteration))
        forward_before = self._evaluations()

        own = self._collect(iteration, plan, part, clock)
        rewards = self._gather_rewards(part, own)
        clock.wait()  # for slower ranks
        scaled = {k: for_training(self.train_rewards[k], v) for k, v in rewards.items()}
        raw = group_advantages(scaled, config.rewards.train, config.rewards.aggregate)
        limit = config.objective.advantage_clip
        forward_rollout = self.velocity.evaluations
        update = self._update(iteration, part, own, raw, raw.clamp(-limit, limit))
        clock.lap("update")
        computed = [
            self._evaluations() - forward_before,
            self.velocity.evaluations - forward_rollout,
        ]
        with clock.apart("health"):
            health = self._health(iteration, plan, part, own)

        line: Metrics = {
            "iteration": iteration,
            "window_start": self.window.start_at(iteration),
            "window_size": self.window.size,
        }
        for name, values in rewards.items():
            line[f"reward_{name}_mean"] = float(values.mean())
            line[f"reward_{name}_std"] = float(values.std())
        informative = torch.stack([has_variance(values) for values in rewards.values()]).any(0)
        of_all = self.ranks.gather(torch.tensor([[*computed, memory_peak(self.device)]]))
        return {
            **line,
            "advantage_mean": float(raw.mean()),
            "advantage_std": float(raw.std()),
            "groups": len(part.prompts),
            "groups_without_variance": int((~informative).sum()),
            **update,
            **health,
            "lr": learning_rate(config.optimizer, iteration, config.iterations),
            "nfe_rollout": plan.steps,
            "nfe_train": config.trained_per_image,
            "evaluations_computed": int(of_all[:, 0].sum()),
            "backward_computed": int(of_all[:, 1].sum()),
            **clock.seconds(),
            "memory_peak_bytes": int(of_all[:, 2].max()),
        }

    def evaluate(
        self, show: Collection[str] = (), tell: Callable[[float], None] = lambda part: None
    ) -> Evaluation:
        """Held-out prompts with the averaged weights, by the ODE from noise fixed per seed.

        `show`: the prompts whose images are wanted; `tell` is called with the part that is done.
        """
        config = self.config
        own, real = self.ranks.share(len(self.held_out))
        prompts = [self.held_out[i] for i in own]
        found = None
        if prompts:
            noise = evaluation_noise(
                config.seed,
                prompts,
                config.evaluation.images_per_prompt,
                self.policy.latent_shape,
            )
            with self._averaged():
                found = evaluate(
                    self.policy,
                    self.plain_velocity,
                    self.all_rewards,
                    prompts,
                    noise,
                    config.evaluation.steps,
                    shift_of(config.evaluation.shift, self.policy),
                    images_at_once(config.compute),
                    show=show,
                    tell=tell,
                )
        if self.ranks.size == 1 and found is not None:
            return found
        parts = [p for p in self.ranks.gather_objects((found, real)) if p[0] is not None]
        return Evaluation(
            self.held_out,
            {
                r.name: torch.cat([judged.scores[r.name][:count] for judged, count in parts])
                for r in self.all_rewards
            },
            torch.cat([judged.diversity[:count] for judged, count in parts])
            if parts[0][0].diversity is not None
            else None,
            {p: image for judged, _ in parts for p, image in judged.images.items()},
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state that a checkpoint must hold, by group and name; whole, on the CPU of the
        first rank. All ranks must ask for it."""
        return {
            "weights": {k: self._kept(p) for k, p in self.parameters.items()},
            "average": self.averages(),
            "optimizer": state_tensors(self.optimizer, self.parameters, self.ranks.first),
        }

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights, as `tensors` gives them."""
        return {k: self._kept(p) for k, p in self.average.items()}

    def _kept(self, tensor: Tensor) -> Tensor:
        """Whole on the first rank; the others, which write nothing, help and let go of it."""
        whole = self.ranks.whole(tensor)
        return whole if self.ranks.first else whole.new_empty(0)

    def load_tensors(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Take over the state of a checkpoint of the same model. RunError for another's."""
        for group in ("weights", "average", "optimizer"):
            if group not in tensors:
                raise RunError(
                    f"the newest checkpoint lacks its {group}, and its manifest does not name it; "
                    "remove its folder and run the same command again"
                )
        weights, average = tensors["weights"], tensors["average"]
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != parameter.shape:
                raise RunError(f"the checkpoint is of another model: {name} does not fit")
        for name, parameter in self.parameters.items():
            self.ranks.put(weights[name], parameter)
            self.ranks.put(average[name], self.average[name])
        load_state(self.optimizer, self.parameters, tensors["optimizer"])

    def _prompts_at(self, iteration: int) -> list[str]:
        """The prompts of an iteration: each epoch a new order, a last partial batch left out."""
        count, available = self.config.rollout.prompts, len(self.train_prompts)
        epoch, batch = divmod(iteration, available // count)
        order = permutation(available, "prompts", self.config.seed, epoch)
        return [self.train_prompts[i] for i in order[batch * count : (batch + 1) * count]]

    def _share(self, prompts: list[str]) -> "_Share":
        indices, real = self.ranks.share(len(prompts))
        own = [prompts[i] for i in indices]
        return _Share(prompts, indices, real, own, self.policy.encode(own) if own else {})

    def _collect(
        self, iteration: int, plan: Plan, part: "_Share", clock: Clock
    ) -> Collected | None:
        """This rank's groups. None where it has none: there are more ranks than prompts."""
        if not part.own:
            return None
        return collect(
            self.config,
            self.policy,
            self.velocity,
            self.train_rewards,
            self.device,
            iteration,
            plan,
            part.own,
            part.conditioning,
            clock,
        )

    def _gather_rewards(self, part: "_Share", own: Collected | None) -> dict[str, Tensor]:
        """Rewards [P, N] of the groups of all ranks, on each of them."""
        nothing = torch.zeros(0, self.config.rollout.group_size, dtype=torch.float64)
        return {
            name: self.ranks.gather(nothing if own is None else own.rewards[name][: part.real])
            for name in self.train_rewards
        }

    def _update(
        self,
        iteration: int,
        part: "_Share",
        own: Collected | None,
        raw: Tensor,
        advantages: Tensor,
    ) -> Metrics:
        """Policy updates of one iteration; advantages [P, N] of all ranks' groups, as they are
        and clipped."""
        config, objective = self.config, self.config.objective
        set_learning_rate(
            self.optimizer, learning_rate(config.optimizer, iteration, config.iterations)
        )
        prompts, group = advantages.shape
        chosen = (
            torch.arange(group).expand(prompts, group)
            if objective.best_of is None
            else best_and_worst(raw, objective.best_of)
        )
        skips = objective.skip_constant_groups
        kept = advantages.any(1).tolist() if skips else [True] * prompts
        batch = None
        if own is not None:
            batch = make_batch(
                config,
                own.sampled,
                part.conditioning,
                advantages[part.indices].to(own.sampled.latents),
                drawn_steps(config, iteration, part.own),
            )
        counts = [i < part.real and kept[index] for i, index in enumerate(part.indices)]
        # Where a forward is collective all ranks must make it; elsewhere none is made in vain.
        groups = [i for i, count in enumerate(counts) if count or self.ranks.sharded]
        real = [counts[i] for i in groups]
        outcomes = []
        for number, images in enumerate(update_parts(chosen.shape[1], objective.updates)):
            if not any(kept):
                break
            some = chosen[part.indices][:, images]
            rows = None if batch is None else make_rows(batch, some, groups, real)
            total = sum(kept) * (images.stop - images.start)
            outcomes.append(self._one_update(iteration, number, batch, rows, total))
        return self._outcome(outcomes)

    def _one_update(
        self, iteration: int, number: int, batch: Batch | None, rows: Rows | None, total: int
    ) -> "_Outcome":
        """One optimizer step on `total` images, those of all ranks together."""
        slots, beta = self.config.trained_per_image, self.config.objective.kl_weight
        parameters = list(self.parameters.values())
        self.optimizer.zero_grad()
        first = number == 0  # the policy is still that of the rollout
        block = self.config.rollout.block if first else None
        # Where images differ in their steps, no slot is the window's first or last step.
        whole = slots > 1 and slots == self.config.window.size
        unit = (
            UnitSteps(parameters, slots) if self.config.objective.step_gradient == "unit" else None
        )
        measures = self.config.health.gradient_conflict and first and whole and unit is None
        conflict = Conflict(parameters, slots) if measures else None
        stats = [torch.zeros(6, device=self.device)]  # for a rank without images
        if unit is not None:  # every rank has part in every step's norm
            parts = [[slot] for slot in range(slots)]
        else:
            parts = [] if batch is None else slots_together(self.config, batch, first)
        for part in parts:
            if conflict is not None and part == [slots - 1]:
                conflict.before_last()
            if batch is not None and rows is not None:
                for judged in judge(
                    self.config, batch, rows, part, self.velocity, self.reference, block
                ):
                    ((judged.loss + beta * judged.kl) / (total * slots)).backward()
                    stats.append(judged.stats)
            if conflict is not None and part == [0]:
                conflict.after_first()
            if unit is not None:
                unit.take(self.ranks)
        cosine = conflict.cosine(self.ranks) if conflict is not None else None
        if unit is not None:
            found = unit.give()
        else:
            found = gradients(parameters)
            self.ranks.sum_gradients(found)
        norm = torch.nn.utils.get_total_norm(found)
        length = float(self.ranks.whole(norm))
        if not math.isfinite(length):
            self._blame(iteration, length)
        limit = self.config.optimizer.max_grad_norm
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        self._step()
        self._move_average()
        seen = torch.stack([s.double() for s in stats]).cpu()
        return _Outcome(seen, total * slots, length, cosine)

    def _step(self) -> None:
        """ConfigError where shards are more than the optimizer understands."""
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not self.ranks.sharded:
                raise
            raise ConfigError(
                f"optimizer.name {self.config.optimizer.name}: cannot step sharded weights "
                f"({str(error).splitlines()[0]}); use adamw, or copies instead of FSDP2"
            ) from error

    def _blame(self, iteration: int, norm: float) -> None:
        """RepeatableError naming a parameter whose gradient is not finite."""
        bad = "all weights together"
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not bool(
                self.ranks.whole(parameter.grad).isfinite().all()
            ):
                bad = name
                break
        raise RepeatableError(
            f"iteration {iteration}: the gradient of {bad} is not finite (norm {norm}); a smaller "
            "optimizer.lr or sampler.eta usually helps"
        )

    def _outcome(self, outcomes: "list[_Outcome]") -> Metrics:
        """The metrics of an iteration's updates, over all ranks."""
        if not outcomes:  # no group told its images apart, and such groups are skipped
            names = ("ratio_max", "clip_fraction", "noise_floor", "log_ratio_sum_max")
            return dict.fromkeys((*names, "grad_norm", "loss", "kl"), 0.0)
        entries = sum(o.entries for o in outcomes)
        mine = [
            max(float(o.stats[:, 0].max()) for o in outcomes),
            max(float(o.stats[:, 3].max()) for o in outcomes),
            # Before the first update the policy is still that of the rollout.
            float(outcomes[0].stats[:, 2].max()),
            sum(float(o.stats[:, 1].sum()) for o in outcomes) / entries,
            sum(float(o.stats[:, 4].sum()) / o.entries for o in outcomes) / len(outcomes),
            sum(float(o.stats[:, 5].sum()) / o.entries for o in outcomes) / len(outcomes),
        ]
        of_all = self.ranks.gather(torch.tensor([mine], dtype=torch.float64))
        ratio_max, delta_max, floor = of_all[:, :3].max(0).values.tolist()
        clip_fraction, loss, kl = of_all[:, 3:].sum(0).tolist()
        cosine = outcomes[0].cosine
        return {
            "ratio_max": ratio_max,
            "clip_fraction": clip_fraction,
            "noise_floor": floor,
            # The density's own log-ratio: log-probs are means over the elements of a latent.
            "log_ratio_sum_max": delta_max * math.prod(self.policy.latent_shape),
            "grad_norm": sum(o.norm for o in outcomes) / len(outcomes),
            "loss": loss,
            "kl": kl,
            **({} if cosine is None else {"gradient_cosine": cosine}),
        }

    def _health(self, iteration: int, plan: Plan, part: "_Share", own: Collected | None) -> Metrics:
        """Diversity within the groups; where the window moves, the drift between SDE and ODE.

        Its evaluations are counted apart: they are no part of the method.
        """
        drifts = self.config.health.drift and self.window.moves_at(iteration)
        columns = torch.zeros(0, 3 if drifts else 1, dtype=torch.float64)
        evaluations = 0
        if own is not None:
            found = [distributions.diversity(own.images[: part.real])]
            if drifts:
                by_ode, evaluations = self._by_ode(iteration, plan, part)
                found.append(distributions.step_drift(own.sampled)[: part.real])
                found.append(distributions.image_drift(own.images, by_ode)[: part.real])
            columns = torch.stack([values.cpu().double() for values in found], 1)
        means = self.ranks.gather(columns).mean(0).tolist()
        line: Metrics = {"group_diversity": means[0]}
        if drifts:
            line["drift_step_kl"], line["drift_image_kl"] = means[1:]
            counts = self.ranks.gather(torch.tensor([evaluations]))
            line["evaluations_health"] = int(counts.sum())
        return line

    def _by_ode(self, iteration: int, plan: Plan, part: "_Share") -> tuple[Tensor, int]:
        """The images [P, 1 or N, 3, H, W] that the ODE reaches from the rollout's first noise, and
        the evaluations that took."""
        config, shape = self.config, self.policy.latent_shape
        calm = replace(plan, kinds=tuple("ode" if kind == "sde" else kind for kind in plan.kinds))
        velocity = CountedVelocity(self.plain_velocity)
        initial = initial_noise(config, iteration, part.own, shape).to(self.device)
        reached = rollout(
            velocity,
            calm,
            part.conditioning,
            initial,
            initial.new_empty(*initial.shape[:2], 0, *shape),
            chunk=initial.shape[1],
            limit=config.compute.micro_batch,
        )
        images = decode(self.policy, reached.latents.flatten(0, 1), config.compute.micro_batch)
        return images.unflatten(0, initial.shape[:2]), velocity.evaluations

    def _evaluations(self) -> int:
        """Network evaluations so far, those of the reference model included."""
        reference = self.reference.evaluations if self.reference else 0
        return self.velocity.evaluations + reference

    @torch.no_grad()
    def _move_average(self) -> None:
        averages, weights = list(self.average.values()), tuple(self.parameters.values())
        torch._foreach_lerp_(averages, weights, 1 - self.config.optimizer.ema_decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Weights and averages change places, one by one: no whole copy is held."""
        for name, parameter in self.parameters.items():
            own = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(own)


@dataclass(frozen=True)
class _Share:
    """An iteration's prompts, and which of them are this rank's."""

    prompts: list[str]
    indices: list[int]
    real: int
    """So many of the indices count; the rest keeps the ranks in step."""
    own: list[str]
    conditioning: Conditioning
    """One row for each of its own."""


@dataclass(frozen=True)
class _Outcome:
    """One update: statistics of this rank's forwards, and what all ranks have in common."""

    stats: Tensor
    """[forwards, 6], as `judge` gives them."""
    entries: int
    """Images times steps of all ranks."""
    norm: float
    cosine: float | None
