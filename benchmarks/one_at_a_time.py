"""One iteration as it is written first: one image, one step and one forward at a time.

The same algorithm to the same result as `mixgrpo.training.trainer`, for what the presets use of it:
every image goes through its whole trajectory by itself, in batches of one; the update evaluates one
image at one step and accumulates the gradients of the images of an update; log-probs, losses and
rewards are read back as numbers when they are made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixgrpo.compute.clock import Clock
from mixgrpo.maths.advantages import group_advantages
from mixgrpo.maths.dpm import DPMSolver
from mixgrpo.maths.objective import clipped_terms, kl_step_weights
from mixgrpo.maths.steps import gaussian_kl, log_prob, ode_step, predict_x0
from mixgrpo.models.protocol import Conditioning
from mixgrpo.models.velocity import Velocity
from mixgrpo.sampling.plan import Plan, make_plan
from mixgrpo.sampling.walk import sde_transition
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.batch import drawn_steps, update_parts
from mixgrpo.training.collect import initial_noise, step_noise
from mixgrpo.training.optimizer import learning_rate, set_learning_rate
from mixgrpo.training.trainer import Trainer


@dataclass(frozen=True)
class Step:
    """A window step of one image."""

    index: int
    latents: Tensor
    """[1, ...], before the step."""
    sample: Tensor
    """[1, ...], after it."""
    log_prob: float


@dataclass(frozen=True)
class Image:
    """One image of one prompt and its way through the window."""

    conditioning: Conditioning
    steps: list[Step]
    rewards: dict[str, float]


def iterate(trainer: Trainer, iteration: int, prompts: list[str], clock: Clock) -> int:
    """One iteration on `prompts`; moves the trainer's weights as its own `iterate` would.

    Returns how many evaluations had a gradient. ValueError for an objective that no preset has.
    """
    config = trainer.config
    o = config.objective
    if o.ratio != "plain" or o.step_weight != "none" or o.best_of or o.skip_constant_groups:
        raise ValueError("one at a time knows the presets' objective only")
    plan = make_plan(config.sampler, trainer.window.steps_at(iteration))
    groups = [collect(trainer, plan, iteration, prompt) for prompt in prompts]
    clock.lap("rollout")
    rewards = {
        name: torch.tensor([[image.rewards[name] for image in group] for group in groups])
        for name in trainer.train_rewards
    }
    advantages = group_advantages(rewards, config.rewards.train, config.rewards.aggregate)
    advantages = advantages.clamp(-o.advantage_clip, o.advantage_clip)
    drawn = drawn_steps(config, iteration, prompts)
    set_learning_rate(
        trainer.state.optimizer, learning_rate(config.optimizer, iteration, config.iterations)
    )
    backward = 0
    for images in update_parts(config.rollout.group_size, o.updates):
        entries = len(prompts) * (images.stop - images.start) * config.trained_per_image
        trainer.state.optimizer.zero_grad()
        for g, group in enumerate(groups):
            for i in range(images.start, images.stop):
                trained = range(config.window.size) if drawn is None else drawn[g, i].tolist()
                for position in trained:
                    judge(trainer, plan, group[i], position, float(advantages[g, i]), entries)
                    backward += 1
        parameters = list(trainer.parameters.values())
        torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm).item()
        trainer.state.optimizer.step()
        with torch.no_grad():
            for name, parameter in trainer.parameters.items():
                trainer.state.average[name].lerp_(parameter, 1 - config.optimizer.ema_decay)
    clock.lap("update")
    return backward


def collect(trainer: Trainer, plan: Plan, iteration: int, prompt: str) -> list[Image]:
    """The images of one prompt, sampled, decoded and scored one after the other."""
    config, policy, device = trainer.config, trainer.policy, trainer.device
    shape = policy.latent_shape
    conditioning = policy.encode([prompt])
    initial = initial_noise(config, iteration, [prompt], shape)[0]
    noise = step_noise(config, iteration, [prompt], shape, len(plan.sde))[0]
    images = []
    for i in range(config.rollout.group_size):
        first = initial[i if len(initial) > 1 else 0].unsqueeze(0).to(device)
        latents, steps = sample(trainer.velocity, plan, conditioning, first, noise[i].to(device))
        with torch.no_grad():
            picture = policy.decode(latents)
        rewards = {k: r.score(picture, [prompt]).item() for k, r in trainer.train_rewards.items()}
        images.append(Image(conditioning, steps, rewards))
    return images


@torch.no_grad()
def sample(
    velocity: Velocity, plan: Plan, conditioning: Conditioning, x: Tensor, noise: Tensor
) -> tuple[Tensor, list[Step]]:
    """One image from x [1, ...] along `plan` with noise [S, ...] at its S random steps."""
    sampler, sigmas = plan.sampler, plan.sigmas
    solver = DPMSolver(sampler.order, sampler.variant)
    predictions: list[Tensor] = []
    steps: list[Step] = []
    drawn = iter(noise)
    for index, kind in enumerate(plan.kinds):
        sigma, following = sigmas[index].item(), sigmas[index + 1].item()
        v = velocity(x, sigma, conditioning)
        predictions.append(predict_x0(x, v, sigma))
        if kind == "sde":
            after, mean, std = sde_transition(plan, index, x, v, next(drawn).unsqueeze(0))
            density = log_prob(after, mean, std, sampler.density)
            if index in plan.window:
                steps.append(Step(index, x, after, density.item()))
            x = after
        elif kind == "ode":
            x = ode_step(x, v, sigma, following)
        else:
            if index == plan.tail_begin:
                solver.reset()
                if sampler.history == "keep":
                    for earlier in predictions[:-1]:
                        solver.observe(earlier)
            x = solver.step(x, predictions[-1], sigmas, index)
    return (predictions[-1] if sampler.decode == "x0" else x), steps


def judge(
    trainer: Trainer, plan: Plan, image: Image, position: int, advantage: float, entries: int
) -> float:
    """Forward and backward of one image at one step of the window; returns the loss."""
    config: RunConfig = trainer.config
    step = image.steps[position]
    sigma = plan.sigmas[step.index].item()
    v = trainer.velocity(step.latents, sigma, image.conditioning)
    _, mean, std = sde_transition(plan, step.index, step.latents, v, torch.zeros_like(v))
    log_ratio = log_prob(step.sample, mean, std, plan.sampler.density) - step.log_prob
    weight = torch.full_like(log_ratio, advantage)
    loss = clipped_terms(log_ratio, weight, config.objective.clip_range).sum()
    if trainer.reference is not None:
        with torch.no_grad():
            base = trainer.reference(step.latents, sigma, image.conditioning)
        _, of_base, _ = sde_transition(plan, step.index, step.latents, base, torch.zeros_like(v))
        dt = plan.sigmas[step.index + 1].item() - sigma
        (scale,) = kl_step_weights(config.objective.kl, plan.sampler.kernel, [dt])
        loss = loss + config.objective.kl_weight * scale * gaussian_kl(mean, of_base, std).sum()
    (loss / entries).backward()
    return loss.item()
