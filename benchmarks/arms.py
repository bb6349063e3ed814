"""What is timed for one preset: its iteration as users get it, and what that is compared with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from benchmarks import one_at_a_time
from benchmarks.floor import Floor, recorded
from mixgrpo.compute.clock import Clock
from mixgrpo.errors import RunError
from mixgrpo.sampling.plan import Cost, iteration_cost, make_plan
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.trainer import Trainer

OURS = "shared"
FIRST = "shared, first window"
UNSHARED = "unshared"
ONE = "one at a time"
FLOOR = "floor"

PHASES = ("rollout", "decode", "reward", "update", "health", "other")


@dataclass(frozen=True)
class Position:
    """An iteration that stands for others: where its window is, and what it costs."""

    iteration: int
    window: int
    """l, the window's first step."""
    steps: int
    """T~, the steps of an image."""
    cost: Cost
    unshared: Cost
    mean_forward: float
    """Forward evaluations of an iteration, averaged over the run."""
    mean_steps: float


def unshared(config: RunConfig) -> RunConfig:
    """The same run with an initial noise for every image, so that a group has nothing to share."""
    rollout = config.rollout.model_copy(update={"noise": "own"})
    return config.model_copy(update={"rollout": rollout})


def mean_position(config: RunConfig) -> Position:
    """The first of the iterations whose forward evaluations are nearest to the run's mean; of two
    equally near the dearer one."""
    costs = [iteration_cost(config, m).forward for m in range(config.iterations)]
    mean = fmean(costs)
    nearest = min(range(len(costs)), key=lambda m: (abs(costs[m] - mean), -costs[m]))
    return _position(config, nearest)


def first_position(config: RunConfig) -> Position:
    """The first of the iterations whose window begins earliest."""
    return _position(config, min(range(config.iterations), key=config.make_window().start_at))


def _position(config: RunConfig, iteration: int) -> Position:
    window = config.make_window()
    every = range(config.iterations)
    return Position(
        iteration,
        window.start_at(iteration),
        make_plan(config.sampler, window.steps_at(iteration)).steps,
        iteration_cost(config, iteration),
        iteration_cost(unshared(config), iteration),
        fmean(iteration_cost(config, m).forward for m in every),
        fmean(make_plan(config.sampler, window.steps_at(m)).steps for m in every),
    )


@dataclass(frozen=True)
class Timing:
    """One run of one arm."""

    seconds: float
    phases: dict[str, float]
    """Seconds of those of PHASES that the arm tells apart."""


class Subject:
    """One preset with its trainer, warmed up, and its arms by name."""

    def __init__(self, preset: str, trainer: Trainer) -> None:
        self.preset, self.trainer = preset, trainer
        self.config = config = trainer.config
        self.mean, self.first = mean_position(config), first_position(config)
        with recorded(trainer) as calls:
            self._iterate(config, self.mean.iteration, self.mean.cost)  # the warm-up
        check(
            f"{preset}, the calls of the floor",
            Cost(sum(c.rows for c in calls), sum(c.rows for c in calls if c.gradient)),
            self.mean.cost,
        )
        self.floor = Floor(calls, trainer.device)
        self.arms: dict[str, Callable[[], Timing]] = {
            OURS: partial(self._iterate, config, self.mean.iteration, self.mean.cost),
            FLOOR: self._floor,
            UNSHARED: partial(
                self._iterate, unshared(config), self.mean.iteration, self.mean.unshared
            ),
            ONE: self._one_at_a_time,
        }
        if self.first.cost != self.mean.cost:
            self.arms[FIRST] = partial(self._iterate, config, self.first.iteration, self.first.cost)

    def _iterate(self, config: RunConfig, iteration: int, cost: Cost) -> Timing:
        # One trainer serves both: none of what it holds depends on the rollout's noise.
        self.trainer.config = config
        clock = Clock(self.trainer.device)
        line = self.trainer.iterate(iteration)
        seconds = clock.seconds()["seconds_total"]
        self.trainer.config = self.config
        counted = Cost(int(line["evaluations_computed"]), int(line["backward_computed"]))
        check(f"{self.preset}, {config.rollout.noise} noise, iteration {iteration}", counted, cost)
        return Timing(seconds, {p: line[f"seconds_{p}"] for p in PHASES})

    def _floor(self) -> Timing:
        self._forget_gradients()
        clock = Clock(self.trainer.device)
        self.floor.replay(clock)
        timing = _timing(clock)
        self._forget_gradients()
        return timing

    def _one_at_a_time(self) -> Timing:
        trainer, mean = self.trainer, self.mean
        velocity, reference = trainer.velocity, trainer.reference
        before = velocity.evaluations + (reference.evaluations if reference else 0)
        prompts = trainer.train_prompts[: self.config.rollout.prompts]
        clock = Clock(trainer.device)
        backward = one_at_a_time.iterate(trainer, mean.iteration, prompts, clock)
        timing = _timing(clock)
        after = velocity.evaluations + (reference.evaluations if reference else 0)
        check(f"{self.preset}, {ONE}", Cost(after - before, backward), mean.unshared)
        return timing

    def _forget_gradients(self) -> None:
        for parameter in self.trainer.parameters.values():
            parameter.grad = None


def _timing(clock: Clock) -> Timing:
    seconds = clock.seconds()
    total = seconds.pop("seconds_total")
    del seconds["seconds_cpu"]  # of all phases together
    return Timing(total, {k.removeprefix("seconds_"): v for k, v in seconds.items()})


def check(what: str, counted: Cost, planned: Cost) -> None:
    """RunError where what was counted is not what the plan says, to the unit."""
    if counted != planned:
        raise RunError(
            f"{what}: computed {counted.forward} evaluations, {counted.backward} of them with "
            f"gradient, where the plan says {planned.forward} and {planned.backward}"
        )
