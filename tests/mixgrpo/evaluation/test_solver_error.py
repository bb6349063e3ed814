"""The solver's error: beside an ODE whose solution is known, and the rollout's own steps."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixgrpo import train
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.evaluation import solver_error
from mixgrpo.evaluation.solver_error import Solver, errors, measure, solvers, window_starts
from mixgrpo.evaluation.trajectories import fine_ode, plan_steps, relative_distance
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.sampling.plan import make_plan
from mixgrpo.sampling.rollout import rollout
from mixgrpo.settings.config import SamplerConfig
from mixgrpo.settings.probes import options_of
from tests.mixgrpo import toy

# Data of mean M and standard deviation S, each element apart: the flow is known in closed form.
M, S = 0.7, 0.3
NOISE = torch.randn(3, 4, generator=torch.manual_seed(0), dtype=torch.float64)


def spread(sigma: float) -> float:
    return math.sqrt((1 - sigma) ** 2 * S**2 + sigma**2)


def solution(sigma: float) -> Tensor:
    """Where the ODE that begins at NOISE is at sigma."""
    return (1 - sigma) * M + spread(sigma) * NOISE


def gaussian(x: Tensor, sigma: Any, conditioning: Any) -> Tensor:
    """E[eps - x0 | x_sigma = x]."""
    slope = (sigma - (1 - sigma) * S**2) / spread(sigma) ** 2
    return -M + (x - (1 - sigma) * M) * slope


def sampler(steps: int = 20, **changes: Any) -> SamplerConfig:
    return SamplerConfig.model_validate({"steps": steps, "shift": 2.0, **changes})


def found(steps: int, start: int, size: int, measured: list[Solver]) -> list[Any]:
    noise = torch.randn(3, size, 4, generator=torch.manual_seed(1), dtype=torch.float64)
    return list(errors(gaussian, sampler(steps), [start], size, measured, {}, NOISE, noise, fine=4))


def test_the_fine_ode_is_the_known_solution_at_every_step_and_of_fourth_order() -> None:
    grid = sigma_schedule(8, 2.0, torch.float64)
    off = []
    for fine in (2, 4):
        states = fine_ode(gaussian, grid, {}, NOISE, fine)
        assert len(states.x) == 9
        assert len(states.x0) == 8
        off.append(
            max(
                float((x - solution(float(sigma))).abs().max())
                for x, sigma in zip(states.x, grid, strict=True)
            )
        )
        for x, x0, sigma in zip(states.x, states.x0, grid, strict=False):
            torch.testing.assert_close(x0, x - sigma * gaussian(x, float(sigma), {}))
    assert off[1] < 1e-4
    assert off[0] / off[1] > 12


@pytest.mark.parametrize("history", ["keep", "restart"])
@pytest.mark.parametrize(
    ("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")]
)
def test_a_plans_steps_are_those_of_a_rollout(order: int, variant: str, history: str) -> None:
    changes = {"order": order, "variant": variant, "head_ratio": 0.5, "tail_ratio": 0.6}
    plan = make_plan(sampler(16, history=history, **changes), range(5, 8))
    policy = toy.ToyPolicy(1, torch.float64)
    text = policy.encode(toy.PROMPTS[:2])
    generator = torch.manual_seed(3)
    x = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 1, 3, 3, 2, 2, generator=generator, dtype=torch.float64)
    rolled = rollout(policy.velocity, plan, text, x.unsqueeze(1), noise, 1)
    whole = plan_steps(policy.velocity, plan, range(plan.steps), text, x, noise[:, 0])
    torch.testing.assert_close(whole.x[-1], rolled.latents[:, 0], rtol=0, atol=1e-13)
    inside = range(plan.head, plan.tail_begin)
    head = plan_steps(policy.velocity, plan, range(plan.head), text, x, noise[:, 0])
    middle = plan_steps(policy.velocity, plan, inside, text, head.x[-1], noise[:, 0])
    torch.testing.assert_close(head.x[-1], rolled.window[0].latents[:, 0], rtol=0, atol=1e-13)
    tail = range(plan.tail_begin, plan.steps)
    seen = [*head.x0, *middle.x0]
    last = plan_steps(policy.velocity, plan, tail, text, middle.x[-1], noise[:, 0], seen)
    torch.testing.assert_close(last.x[-1], rolled.latents[:, 0], rtol=0, atol=1e-13)


def test_errors_are_distances_from_the_known_solution() -> None:
    before, after = Solver("before", "1", 0.5), Solver("after", "2 midpoint", 0.5)
    own = found(20, 8, 4, [before, after])
    by = {(e.solver.place, e.window, e.at): e for e in own}
    plan = before.plan(sampler(), 8, 4)
    x = NOISE
    for i in range(plan.head):  # Euler on the thinned grid
        sigma, after_it = float(plan.sigmas[i]), float(plan.sigmas[i + 1])
        x = x + (after_it - sigma) * gaussian(x, sigma, {})
    sigma = float(plan.sigmas[plan.head])
    expected = (x - solution(sigma)).norm(dim=1) / solution(sigma).norm(dim=1)
    state = by["before", "ode", "state"]
    assert state.saved == 4
    torch.testing.assert_close(state.distance, expected, rtol=1e-4, atol=0)
    # A Gaussian's flow scales what lies off: exactly so by the ODE from there on.
    image = (x - solution(sigma)) / spread(sigma) * spread(0.0)
    expected = image.norm(dim=1) / solution(0.0).norm(dim=1)
    torch.testing.assert_close(by["before", "ode", "image"].distance, expected, rtol=1e-2, atol=0)
    plan = after.plan(sampler(), 8, 4)
    tail = range(plan.tail_begin, plan.steps)
    seen = [
        solution(float(s)) - s * gaussian(solution(float(s)), float(s), {})
        for s in plan.sigmas[:-1]
    ]
    x = solution(float(plan.sigmas[plan.tail_begin]))
    unused = torch.zeros(3, 4, 4, dtype=torch.float64)
    x = plan_steps(gaussian, plan, tail, {}, x, unused, seen[: plan.tail_begin]).x[-1]
    assert by["after", "ode", "image"].saved == 4
    torch.testing.assert_close(
        by["after", "ode", "image"].distance,
        (x - solution(0.0)).norm(dim=1) / solution(0.0).norm(dim=1),
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize(("order", "least", "most"), [("1", 1.8, 2.3), ("2 midpoint", 3.4, 5.0)])
def test_halved_steps_show_the_solvers_order(order: str, least: float, most: float) -> None:
    coarse, fine = (
        float(
            next(
                e
                for e in found(steps, steps // 2, 4, [Solver("before", order, 0.5)])
                if e.at == "state"
            ).distance.mean()
        )
        for steps in (64, 128)
    )
    assert least < coarse / fine < most


def test_random_steps_are_the_same_on_both_sides_and_fine_steps_leave_no_error() -> None:

    own = found(400, 200, 4, [Solver("before", "2 midpoint", 0.9), Solver("after", "2 heun", 1.0)])
    assert {e.window for e in own} == {"ode", "sde"}
    # Of another noise's window the images would lie apart by about its noise.
    assert all(float(e.distance.max()) < 2e-3 for e in own)


def test_there_is_nothing_to_measure_before_a_window_at_the_first_step_or_after_the_last() -> None:
    measured = solvers(["1", "3"], [0.4])
    assert {e.solver.place for e in found(20, 0, 4, measured)} == {"after"}
    assert {e.solver.place for e in found(20, 16, 4, measured)} == {"before"}
    saved = {(e.solver.place, e.solver.ratio): e.saved for e in found(20, 5, 4, measured)}
    assert saved == {("before", 1.0): 0, ("before", 0.4): 3, ("after", 0.4): 7, ("after", 1.0): 0}


def test_the_distance_is_relative_to_the_reference_image_by_image() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    reference = torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    assert relative_distance(x, reference).tolist() == [0.75, 0.0]


def test_windows_are_spread_over_those_that_the_run_visits() -> None:
    config = toy.config(iterations=30, sampler={"steps": 25}, window={"size": 4, "interval": 2})
    assert window_starts(config, []) == [4, 9, 14]
    assert window_starts(toy.config(window={"strategy": "frozen"}), []) == [0]
    assert window_starts(config, [7, 2, 7]) == [2, 7]
    with pytest.raises(ConfigError, match=r"starts: a window of 4 steps does not fit at 22 of 25"):
        window_starts(config, [22])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "toy-run"
    config = toy.config(
        sampler={"steps": 12}, window={"start": 4}, optimizer={"lr": 0.05}, evaluation={"every": 4}
    )
    assert train.run(config, folder) == "finished"
    return folder


def test_a_finished_run_is_measured_with_its_weights_and_with_the_base_models(run: Path) -> None:
    options: Any = options_of("solver-error", {"prompts": 2, "orders": [1, "2 heun"]})
    rows = measure(run, 4, options)
    assert {row["model"] for row in rows} == {"trained", "base"}
    assert {row["images"] for row in rows} == {2}
    key = ("place", "order", "ratio", "history", "start", "window", "at")
    by = {(row["model"], *(row[k] for k in key)): row["error"] for row in rows}
    assert len(by) == len(rows)
    one = ("after", "1", 0.2, "keep", 5, "ode", "image")
    assert by["trained", *one] != by["base", *one]
    reference = by["trained", "reference", "", 1.0, "", -1, "ode", "image"]
    smallest = min(row["error"] for row in rows if row["place"] != "reference")
    assert reference < smallest / 20
    assert rows == measure(run, 4, options)


def test_the_base_model_is_measured_once_for_runs_that_differ_in_what_they_leave_out(
    run: Path, tmp_path: Path, toy_site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = options_of("solver-error", {"prompts": 2, "orders": [1, 3]})
    arms: dict[str, dict[str, Any]] = {
        "thin": {"tail_ratio": 0.5, "head_ratio": 0.5, "order": 3, "history": "restart"},
        "whole": {},
        "louder": {"eta": 1.3},
    }
    for name, changed in arms.items():
        config = toy.config(
            iterations=1,
            sampler={"steps": 12, **changed},
            window={"start": 4},
            evaluation={"every": 1},
        )
        assert train.run(config, tmp_path / name) == "finished"
    monkeypatch.setattr(solver_error, "_OF_BASE", {})
    alone = {}
    for name in arms:
        solver_error._OF_BASE.clear()
        alone[name] = measure(tmp_path / name, 1, options)
    solver_error._OF_BASE.clear()
    models: list[str] = []
    measured = solver_error._rows
    monkeypatch.setattr(
        solver_error, "_rows", lambda model, *rest: models.append(model) or measured(model, *rest)
    )
    assert {name: measure(tmp_path / name, 1, options) for name in arms} == alone
    assert models == ["base", "trained", "trained", "base", "trained"]


def test_a_run_without_a_solver_and_one_without_its_checkpoint_say_so(
    run: Path, tmp_path: Path, toy_site: Path
) -> None:
    options: Any = options_of("solver-error", {})
    with pytest.raises(ConfigError, match="no checkpoint of iteration 2"):
        measure(run, 2, options)
    weights = run / "checkpoints/000004/average.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1])
        with pytest.raises(RunError, match="corrupt checkpoint"):
            measure(run, 4, options)
    finally:
        weights.write_bytes(kept)
    config = toy.config(
        iterations=1,
        sampler={"sde": "all"},
        window={"strategy": "frozen", "size": 4},
        evaluation={"every": 1},
    )
    assert train.run(config, tmp_path / "dance") == "finished"
    with pytest.raises(ConfigError, match=r"sampler\.sde all leaves no step to a solver"):
        measure(tmp_path / "dance", 1, options)
