"""The training loop: Algorithm 1 of MixGRPO, one iteration at a time.

`Trainer.iterate` is the algorithm; what it calls stands beside it: `collect` (groups of images and
their rewards), `batch` (what an update learns from), `losses`, `gradient`, `state` (the weights),
`metrics`. Files, resuming and stopping are in `run`.
"""

import math
import warnings
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from mixgrpo.compute.clock import Clock, memory_peak
from mixgrpo.compute.ranks import Ranks
from mixgrpo.errors import ConfigError
from mixgrpo.evaluation.held_out import (
    Evaluation,
    choose,
    evaluate,
    evaluation_noise,
    in_blocks,
)
from mixgrpo.maths.advantages import group_advantages
from mixgrpo.maths.randomness import permutation
from mixgrpo.models.policy import (
    held_out_prompts,
    make_policy,
    reference_of,
    train_prompts,
    velocity_of,
)
from mixgrpo.models.velocity import CountedVelocity
from mixgrpo.rewards.calls import check_prompts, for_training
from mixgrpo.rewards.load import load_rewards
from mixgrpo.sampling.inference import images_at_once, shift_of
from mixgrpo.sampling.plan import make_plan
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.batch import (
    Batch,
    drawn_steps,
    forwards,
    make_batch,
    select,
    slots_together,
    update_parts,
)
from mixgrpo.training.collect import Groups, Share, collect
from mixgrpo.training.drift import health_metrics
from mixgrpo.training.encode import encode_ahead
from mixgrpo.training.gradient import Gradient
from mixgrpo.training.losses.policy import policy_loss
from mixgrpo.training.metrics import Metrics, Update, reward_metrics, update_metrics
from mixgrpo.training.optimizer import learning_rate, set_learning_rate
from mixgrpo.training.state import State


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
        self.state = State(config.optimizer, self.parameters, ranks)
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
        self.held_out = choose(held_out_prompts(config, self.policy), config.evaluation.prompts)
        self._check_prompts()
        trained = [p for i in range(config.iterations) for p in self.prompts_at(i)]
        encode_ahead(self.policy, [*self.held_out, *trained], ranks)

    def iterate(self, iteration: int) -> Metrics:
        """Sample, score, update: one iteration. Returns its line of metrics.jsonl.

        RunError where a reward fails or a number is not finite; the weights are then those of
        before the update that would have spoiled them.
        """
        config, objective, clock = self.config, self.config.objective, Clock(self.device)
        forward_before = self._evaluations()

        # The window's steps are random, and trained; all others follow the ODE.
        plan = make_plan(config.sampler, self.window.steps_at(iteration))
        share = self._share(self.prompts_at(iteration))

        # Rollout: for every prompt a group of images by the policy as it is now; their rewards.
        groups = collect(
            *(config, self.policy, self.velocity, self.train_rewards, self.device),
            *(iteration, plan, share, clock),
        )
        rewards = self._gather_rewards(share, groups)
        clock.wait()  # for slower ranks

        # Advantages: each image against the others of its group.
        scaled = {k: for_training(self.train_rewards[k], v) for k, v in rewards.items()}
        raw = group_advantages(scaled, config.rewards.train, config.rewards.aggregate)
        advantages = raw.clamp(-objective.advantage_clip, objective.advantage_clip)
        chosen, learned = select(objective, raw)

        # Updates, each on some images of every group: loss and gradient at the window's steps.
        before_updates = self.velocity.evaluations
        lr = learning_rate(config.optimizer, iteration, config.iterations)
        set_learning_rate(self.state.optimizer, lr)
        batch = self._batch(iteration, share, groups, advantages, chosen, learned)
        updates: list[Update] = []
        for images in update_parts(chosen.shape[1], objective.updates) if learned.any() else []:
            first = not updates  # the policy is still that of the rollout
            block = config.rollout.block if first else None
            count = int(learned.sum()) * (images.stop - images.start) * config.trained_per_image
            self.state.optimizer.zero_grad()
            gradient = self._gradient(first)
            statistics = []
            for slots in slots_together(config, plan, first):
                for steps in forwards(batch, images, slots, config.compute.micro_batch, block):
                    v = steps.predict(self.velocity)
                    with torch.no_grad():
                        v_reference = steps.predict(self.reference) if self.reference else None
                    loss = policy_loss(objective, config.sampler.density, steps, v, v_reference)
                    (loss.total / count).backward()
                    statistics.append(loss.statistics)
                gradient.after(slots)
            norm, cosine = gradient.finish(config.optimizer.max_grad_norm, f"iteration {iteration}")
            self.state.step(config.optimizer.ema_decay)
            updates.append(Update.of(statistics, count, norm, cosine, self.device))
        update = update_metrics(updates, self.ranks, math.prod(self.policy.latent_shape))
        clock.lap("update")

        forward = self._evaluations() - forward_before
        backward = self.velocity.evaluations - before_updates
        with clock.apart("health"):
            drift = config.health.drift and self.window.moves_at(iteration)
            health = health_metrics(
                *(config, self.policy, self.plain_velocity, self.ranks, drift),
                *(iteration, plan, share, groups),
            )
        of_all = self.ranks.gather(torch.tensor([[forward, backward, memory_peak(self.device)]]))
        return {
            "iteration": iteration,
            "window_start": self.window.start_at(iteration),
            "window_size": self.window.size,
            **reward_metrics(rewards, raw),
            **update,
            **health,
            "lr": lr,
            "nfe_rollout": plan.steps,
            "nfe_train": config.trained_per_image,
            "evaluations_computed": int(of_all[:, 0].sum()),
            "backward_computed": int(of_all[:, 1].sum()),
            **clock.seconds(),
            "memory_peak_bytes": int(of_all[:, 2].max()),
        }

    def evaluate(
        self,
        show: Collection[str] = (),
        tell: Callable[[float], None] = lambda part: None,
        images: int | None = None,
    ) -> Evaluation:
        """Held-out prompts with the averaged weights, by the ODE from noise fixed per seed.

        `show`: the prompts whose images are wanted; `tell` is called with the part that is done.
        `images`: of each prompt, `evaluation.images_per_prompt` without it.
        """
        config, settings = self.config, self.config.evaluation
        usual = settings.images_per_prompt
        count = usual if images is None else images
        indices, counted = self.ranks.share(len(self.held_out))
        prompts = [self.held_out[i] for i in indices]

        def judge(block: range) -> Evaluation:
            shape, first = self.policy.latent_shape, block.start
            return evaluate(
                *(self.policy, self.plain_velocity, self.all_rewards, prompts),
                evaluation_noise(config.seed, prompts, len(block), shape, first),
                settings.steps,
                shift_of(settings.shift, self.policy),
                images_at_once(config.compute),
                show=() if first else show,
                tell=lambda part: tell((first + part * len(block)) / count),
            )

        evaluation = None
        if prompts:
            with self.state.averaged():
                evaluation = in_blocks(count, usual, judge).first(counted)
        parts = self.ranks.gather_objects(evaluation)
        return Evaluation.joined([part for part in parts if part is not None])

    def prompts_at(self, iteration: int) -> list[str]:
        """The prompts of an iteration: each epoch a new order, a last partial batch left out."""
        count, available = self.config.rollout.prompts, len(self.train_prompts)
        epoch, batch = divmod(iteration, available // count)
        order = permutation(available, "prompts", self.config.seed, epoch)
        return [self.train_prompts[i] for i in order[batch * count : (batch + 1) * count]]

    def _check_prompts(self) -> None:
        """ConfigError for too few prompts and for one that a reward cannot judge."""
        config = self.config
        if len(self.train_prompts) < config.rollout.prompts:
            raise ConfigError(
                f"rollout.prompts: {config.rollout.prompts} prompts per iteration, but "
                f"{config.prompts.train or config.model.name} has {len(self.train_prompts)} to "
                "train on"
            )
        seen = set(self.held_out) & set(self.train_prompts)
        if seen and self.ranks.first:
            warnings.warn(
                f"{len(seen)} of the {len(self.held_out)} held-out prompts are also trained on, "
                f"such as {min(seen)!r}: evaluations are then no test of what was learned",
                stacklevel=2,
            )
        for reward in self.all_rewards:
            check_prompts(reward, [*self.train_prompts, *self.held_out])

    def _share(self, prompts: list[str]) -> Share:
        """This rank's part of an iteration's prompts, encoded."""
        indices, counted = self.ranks.share(len(prompts))
        here = [prompts[i] for i in indices]
        return Share(prompts, indices, counted, here, self.policy.encode(here) if here else {})

    def _gather_rewards(self, share: Share, groups: Groups | None) -> dict[str, Tensor]:
        """Rewards [P, N] of the groups of all ranks, on each of them."""
        nothing = torch.zeros(0, self.config.rollout.group_size, dtype=torch.float64)
        return {
            name: self.ranks.gather(
                nothing if groups is None else groups.rewards[name][: share.counted]
            )
            for name in self.train_rewards
        }

    def _batch(
        self,
        iteration: int,
        share: Share,
        groups: Groups | None,
        advantages: Tensor,
        chosen: Tensor,
        learned: Tensor,
    ) -> Batch | None:
        """This rank's groups, of all ranks' advantages [P, N], images [P, n] and groups [P]."""
        if groups is None:
            return None
        counts = [
            i < share.counted and bool(learned[index]) for i, index in enumerate(share.indices)
        ]
        return make_batch(
            self.config,
            groups.rollout,
            share.conditioning,
            advantages[share.indices],
            chosen[share.indices],
            counts,
            drawn_steps(self.config, iteration, share.here),
            # Where a forward is collective all ranks must make it; elsewhere none is made in vain.
            all_groups=self.ranks.sharded,
        )

    def _gradient(self, first: bool) -> Gradient:
        """Of one update. Where images differ in their steps, no slot is the window's first or last
        step, and there is nothing to compare."""
        config, slots = self.config, self.config.trained_per_image
        compare = config.health.gradient_conflict and first and slots == config.window.size
        unit = config.objective.step_gradient == "unit"
        return Gradient(self.parameters, self.ranks, slots, unit, compare)

    def _evaluations(self) -> int:
        """Network evaluations so far, those of the reference model included."""
        reference = self.reference.evaluations if self.reference else 0
        return self.velocity.evaluations + reference
