"""Every image's score of a sweep's runs in one frame, against the files read by pandas alone."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.analysis.results import collect
from harness.analysis.scores import prompt_means, read_scores
from harness.runs.state import look
from harness.runs.store import STORE
from harness.study.spec import Sweep
from mixgrpo import train
from tests.harness.launching.toys import launch, same, write_sweep
from tests.mixgrpo.toy import PROMPTS

pytestmark = pytest.mark.usefixtures("toy_site")

ARMS = {
    "b": {"optimizer.lr": 0.01, "evaluation.final_images_per_prompt": 4},
    "a": {"optimizer.lr": 0.02, "rewards.held_out": ["contrast", "constant"]},
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Sweep, Path]:
    """A sweep of two arms and seeds that has run; its runs."""
    sweep = write_sweep(tmp_path, ARMS, seeds=2)
    launch(sweep, tmp_path / "runs")
    return sweep, tmp_path / "runs"


def test_the_frame_has_every_image_of_every_run(made: tuple[Sweep, Path]) -> None:
    sweep, runs = made
    found = read_scores(sweep, runs)
    rewards = [f"reward_{name}" for name in ("brightness", "contrast", "constant")]
    assert list(found.columns) == ["arm", "seed", "iteration", "prompt", "image", *rewards]
    assert list(found["arm"].cat.categories) == ["b", "a"]
    assert {str(found[name].dtype) for name in rewards} == {"float32"}
    expected = []
    for arm in ("b", "a"):
        for seed in (0, 1):
            (run,) = (r for r in sweep.runs if (r.arm, r.seed) == (arm, seed))
            for file in sorted((runs / "toy" / run.folder_name / "scores").iterdir()):
                table = pd.read_parquet(file)
                assert set(table.pop("seed")) == {seed}
                table.insert(0, "arm", arm)
                table.insert(1, "seed", seed)
                table.insert(2, "iteration", int(file.stem))
                expected.append(table)
    pd.testing.assert_frame_equal(
        found.astype({"arm": object, "prompt": object}),
        pd.concat(expected, ignore_index=True)[found.columns].astype(
            {"arm": object, "prompt": object}
        ),
        check_exact=True,
        check_dtype=False,
    )
    # 5 evaluations of 2 prompts with 2 images; the last of b with 4.
    assert len(found) == 2 * 5 * 4 + 2 * (4 * 4 + 8)
    last = read_scores(sweep, runs, last_only=True)
    pd.testing.assert_frame_equal(
        last, found[found["iteration"] == 12].reset_index(drop=True), check_exact=True
    )


def test_means_over_prompts_are_the_evaluations(made: tuple[Sweep, Path]) -> None:
    sweep, runs = made
    means = prompt_means(read_scores(sweep, runs))
    assert list(means.columns[:5]) == ["arm", "seed", "iteration", "prompt", "images"]
    assert set(means["prompt"]) == set(PROMPTS[7:])
    evals = collect(sweep, runs).evaluations
    assert "scores_sha256" not in evals.columns
    keys = ["arm", "seed", "iteration"]
    both = evals.merge(
        means.groupby(keys, observed=True)[["reward_brightness", "reward_contrast"]]
        .mean()
        .reset_index(),
        on=keys,
    )
    assert len(both) == len(evals)
    for name in ("brightness", "contrast"):
        a, b = both[f"reward_{name}_mean"].to_numpy(), both[f"reward_{name}"].to_numpy()
        assert np.array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-6)
    images = means[(means["arm"] == "b") & (means["iteration"] == 12)]["images"]
    assert list(images) == [4] * 4


@pytest.mark.filterwarnings("default")
def test_a_damaged_run_is_named_and_left_out(made: tuple[Sweep, Path]) -> None:
    sweep, runs = made
    run = sweep.runs[0]
    file = runs / "toy" / run.folder_name / "scores" / "000003.parquet"
    whole, times = file.read_bytes(), file.stat()
    file.write_bytes(whole[:-1] + b"x")
    for quiet in (False, True):
        if quiet:  # as a bad disk leaves it
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        left_out: list[str] = []
        found = read_scores(sweep, runs, left_out=left_out)
        assert len(set(zip(found["arm"], found["seed"], strict=True))) == 3
        (text,) = left_out
        assert text.startswith(
            f"{run.name}: {file}: was changed after it was written; run the swee"
        )
        state = look(sweep, run, runs)
        assert state.state == ("finished" if quiet else "lost")
    file.unlink()
    state = look(sweep, run, runs)
    assert (state.state, state.damage) == (
        "lost",
        f"{file}: is missing; run the sweep again: it makes again what is damaged",
    )
    assert any(str(file) in text for text in collect(sweep, runs).left_out)
    states, _ = launch(sweep, runs)
    assert any("is missing; the result is set aside" in w for w in states["b"].warnings)
    assert {state.state for state in states.values()} == {"finished"}
    assert file.read_bytes() == whole


def test_nothing_measured_is_an_empty_frame(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, ARMS)
    found = read_scores(sweep, tmp_path / "runs")
    assert list(found.columns) == ["arm", "seed", "iteration", "prompt", "image"]
    assert len(found) == len(prompt_means(found)) == 0


def test_scores_come_along_with_the_first_evaluation_and_a_shorter_run(tmp_path: Path) -> None:
    """Of a sweep's runs the bytes are those of a run that is made alone."""
    runs = tmp_path / "runs"
    final = {"evaluation.final_images_per_prompt": 5}
    short, _ = launch(write_sweep(tmp_path, {"a": {**final, "iterations": 6}}), runs)
    sweep = write_sweep(tmp_path, {"a": final, "b": {**final, "optimizer.lr": 0.01}, "c": {}})
    states, _ = launch(sweep, runs)
    (attempt,) = states["a"].attempts
    assert attempt.began_at == 6
    for arm, state in states.items():
        train.run(state.run.config, tmp_path / "alone" / arm)
        assert same(state.folder) == same(tmp_path / "alone" / arm), arm
    firsts = [
        json.loads((state.folder / "eval.jsonl").read_text().splitlines()[0])["seconds_total"]
        for state in (short["a"], *states.values())
    ]
    assert len(set(firsts)) == 1  # made once, also for the run whose last evaluation is smaller
    # A damaged copy is not taken.
    (kept,) = (runs / STORE / "evaluations").iterdir()
    (kept / "scores" / "000000.parquet").write_bytes(b"")
    states, _ = launch(write_sweep(tmp_path, {"d": {"optimizer.lr": 0.02}}, "more"), runs)
    train.run(states["d"].run.config, tmp_path / "alone" / "d")
    assert same(states["d"].folder) == same(tmp_path / "alone" / "d")
