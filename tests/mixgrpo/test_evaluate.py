"""Rewards on held-out prompts: pure and hybrid apart, with intervals that say what they cover."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mixgrpo import cli, train
from mixgrpo import evaluate as command
from mixgrpo.errors import ConfigError
from mixgrpo.evaluate import compare, judge
from mixgrpo.evaluation.bootstrap import RESAMPLES, bootstrap
from mixgrpo.evaluation.held_out import evaluate, evaluation_noise
from mixgrpo.files.jsonlines import read_lines
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.models.protocol import Conditioning
from mixgrpo.rewards.load import load_reward
from mixgrpo.runs.load import load_run
from mixgrpo.sampling.inference import Sampling, sample
from mixgrpo.sampling.rollout import sample_ode
from tests.mixgrpo import toy
from tests.mixgrpo.toy import PROMPTS, Brightness, ToyPolicy

pytestmark = pytest.mark.usefixtures("toy_site")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A finished run that has moved far enough for rewards to show it."""
    folder = tmp_path_factory.mktemp("runs") / "toy-run"
    config = toy.config(output={"checkpoints_kept": 9}, optimizer={"lr": 0.05})
    assert train.run(config, folder) == "finished"
    return folder


def output(run: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    command.main(run, **options)
    return capsys.readouterr().out


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- bootstrap -----------------------------------------------------------------------------------


def test_intervals_are_scipys_percentile_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.normal(3, 1, 60), rng.exponential(2, 60), rng.uniform(size=60)], 1)
    for column, interval in zip(values.T, bootstrap(values, 5), strict=True):
        reference = stats.bootstrap(
            (column,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng
        ).confidence_interval
        assert interval.mean == pytest.approx(column.mean(), rel=1e-12)
        # Two Monte Carlo estimates of the same 2.5 % quantile: a few per cent of the error apart.
        tolerance = 0.1 * column.std() / 60**0.5
        assert interval.low == pytest.approx(reference.low, abs=tolerance)
        assert interval.high == pytest.approx(reference.high, abs=tolerance)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    values = np.random.default_rng(1).normal(7, 2, (60, 800))
    covered = np.mean([i.low <= 7 <= i.high for i in bootstrap(values, 0)])
    # 0.95 less what the percentile method loses at n = 60, within 3 standard errors.
    assert 0.91 <= covered <= 0.97


def test_columns_are_resampled_together_and_by_the_seed_alone() -> None:
    values = np.random.default_rng(2).normal(size=(30, 2))
    values = np.concatenate([values, values[:, :1] + 1], 1)
    a, _, c = bootstrap(values, 4)
    assert (c.low, c.high) == pytest.approx((a.low + 1, a.high + 1), abs=1e-12)
    assert bootstrap(values[:, :1], 4)[0] == pytest.approx(a, abs=1e-12)
    assert bootstrap(values, 5)[0] != a


def test_one_prompt_alone_has_no_interval() -> None:
    (found,) = bootstrap(np.array([[2.5]]), 0)
    assert found.mean == 2.5
    assert np.isnan([found.low, found.high]).all()


# --- evaluation ----------------------------------------------------------------------------------


def test_pure_evaluation_is_the_ode_to_the_bit() -> None:
    policy = ToyPolicy(1)
    noise = evaluation_noise(0, PROMPTS[:3], 2, policy.latent_shape)
    judged = evaluate(
        policy, policy.velocity, [Brightness()], PROMPTS[:3], noise, 6, 2.0, 4, show=PROMPTS
    )
    repeated = [p for p in PROMPTS[:3] for _ in range(2)]
    sigmas = sigma_schedule(6, 2.0, torch.float64)
    for rows in (slice(0, 4), slice(4, 6)):
        latents = sample_ode(policy.velocity, sigmas, policy.encode(repeated[rows]), noise[rows])
        images = torch.cat([judged.images[p] for p in PROMPTS[:3]])
        assert torch.equal(images[rows], policy.decode(latents))


def test_images_are_let_go_of_and_scored_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, sizes = ToyPolicy(1), []

    class Seen(Brightness):
        def score(self, images: Tensor, prompts: list[str]) -> Tensor:
            sizes.append(len(images))
            return super().score(images, prompts)

    noise = evaluation_noise(0, PROMPTS[:5], 2, policy.latent_shape)
    whole = evaluate(policy, policy.velocity, [Seen()], PROMPTS[:5], noise, 6, 2.0, 2)
    monkeypatch.setattr("mixgrpo.evaluation.held_out.IMAGES_AT_ONCE", 5)
    parts = evaluate(
        *(policy, policy.velocity, [Seen()], PROMPTS[:5], noise, 6, 2.0, 2), show=PROMPTS[1:2]
    )
    assert sizes == [10, 4, 4, 2]  # a prompt's images stay together
    assert torch.equal(whole.scores["brightness"], parts.scores["brightness"])
    assert whole.diversity is not None
    assert parts.diversity is not None
    assert torch.equal(whole.diversity, parts.diversity)
    assert (whole.images, list(parts.images)) == ({}, PROMPTS[1:2])


def test_hybrid_evaluation_switches_to_the_base_model() -> None:
    policy, base = ToyPolicy(1), ToyPolicy(2)
    noise = evaluation_noise(0, PROMPTS[:3], 2, policy.latent_shape)
    text = policy.encode([p for p in PROMPTS[:3] for _ in range(2)])
    for p_mix in (0.0, 0.4, 1.0):
        judged = evaluate(
            *(policy, policy.velocity, [], PROMPTS[:3], noise, 5, 3.0, 128),
            *(base.velocity, p_mix, PROMPTS),
        )
        latents = sample(policy.velocity, base.velocity, Sampling(5, 3.0, p_mix), text, noise)
        images = torch.cat([judged.images[p] for p in PROMPTS[:3]])
        assert torch.equal(images, policy.decode(latents))


def test_rows_are_what_the_run_itself_measured(run: Path) -> None:
    """Base model and pure are the run's first and last evaluation."""
    loaded = load_run(run)
    rewards = {name: load_reward(name) for name in ("brightness", "contrast", "constant")}
    ways = [Sampling(5, 3.0, p) for p in (0.0, 1.0, 0.4)]
    rows = compare(loaded.config, ways, judge(loaded, ways, rewards, PROMPTS[7:], 2, 3), 3)
    assert [(r.reward, r.sampling.p_mix) for r in rows] == [
        (name, p) for name in rewards for p in (0.0, 1.0, 0.4)
    ]
    assert [r.role for r in rows[::3]] == [
        "trained on",
        "held out",
        "neither trained nor held out",
    ]
    lines = read_lines(run / "eval.jsonl")
    means = {(r.reward, r.sampling.p_mix): r.mean.mean for r in rows}
    for name in ("brightness", "contrast"):
        for p_mix, line in ((0.0, lines[0]), (1.0, lines[-1])):
            assert means[name, p_mix] == pytest.approx(line[f"reward_{name}_mean"], rel=1e-6)
        low, hybrid, high = sorted(means[name, p] for p in (0.0, 0.4, 1.0))
        assert low < hybrid < high
    for row in rows:
        assert (row.difference is None) == (row.sampling.p_mix == 0)
        if row.difference is not None:
            change = row.mean.mean - means[row.reward, 0.0]
            assert row.difference.mean == pytest.approx(change, abs=1e-9)


def test_differences_are_paired_by_prompt(run: Path) -> None:
    """Prompts differ far more than the two models do on one of them: pairing takes that out."""
    loaded = load_run(run)
    ways = [Sampling(5, 3.0, p) for p in (0.0, 1.0)]
    judged = judge(loaded, ways, {"contrast": load_reward("contrast")}, PROMPTS, 2, 3)
    _, pure = compare(loaded.config, ways, judged, 3)
    difference = pure.difference
    assert difference is not None
    assert difference.high - difference.low < 0.5 * (pure.mean.high - pure.mean.low)
    scores = []
    for velocity in (loaded.reference, loaded.velocity):
        noise = evaluation_noise(3, PROMPTS, 2, (3, 2, 2))
        judged = evaluate(loaded.policy, velocity, [toy.Contrast()], PROMPTS, noise, 5, 3.0)
        scores.append(judged.scores["contrast"].double().mean(1).numpy())
    (expected,) = bootstrap((scores[1] - scores[0])[:, None], 3)
    assert difference == pytest.approx(expected, rel=1e-9)


# --- command -------------------------------------------------------------------------------------


def test_the_command_prints_a_table_of_80_columns(
    run: Path, tmp_path: Path, toy_site: Path
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    words = ["--p-mix", "0.4", "--p-mix", "0.8", "--reward", "constant", "--images", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "mixgrpo.evaluate", "toy-run", *words],
        cwd=run.parent,
        env=toy.environment(toy_site),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    labels = ["base model", "pure", "p_mix 40 %", "p_mix 80 %"]
    blocks = ["brightness (trained on)", "contrast (held out)"]
    blocks += ["constant (neither trained nor held out)"]
    begin = [lines.index(block) for block in blocks]
    for at in begin:
        for label, line in zip(labels, lines[at + 1 : at + 5], strict=True):
            numbers = re.findall(r"[-+]?\d+\.\d{4}", line.removeprefix(f"  {label}"))
            assert line.startswith(f"  {label} ")
            assert len(numbers) == (3 if label == "base model" else 6)
    text = " ".join(done.stdout.split())
    assert "checkpoint 4 of 4 iterations" in text
    assert "2 held-out prompts x 3 images, seed 3; 5 ODE steps, shift 3" in text
    assert "over the 2 prompts" in text
    assert "not what another seed of training would have given" in text
    assert "With fewer than 20 prompts they are too narrow" in text
    assert "p_mix 80 %: the first 4 of 5 steps with the trained model" in text


def test_json_holds_the_same_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = strict_json(output(run, capsys, p_mix=[0.4], as_json=True))
    loaded = load_run(run)
    rewards = {name: load_reward(name) for name in ("brightness", "contrast")}
    ways = [Sampling(5, 3.0, p) for p in (0.0, 1.0, 0.4)]
    rows = compare(loaded.config, ways, judge(loaded, ways, rewards, PROMPTS[7:], 2, 3), 3)
    assert (found["checkpoint"], found["prompts"], found["images_per_prompt"]) == (4, 2, 2)
    assert (found["seed"], found["steps"], found["shift"]) == (3, 5, 3.0)
    assert [(r["reward"], r["policy"], r["trained_steps"]) for r in found["rows"]] == [
        (name, label, trained)
        for name in ("brightness", "contrast")
        for label, trained in (("base model", 0), ("pure", 5), ("p_mix 40 %", 2))
    ]
    for line, row in zip(found["rows"], rows, strict=True):
        assert (line["mean"], line["low"], line["high"]) == pytest.approx(row.mean)
        if row.difference is None:
            assert line["minus_base"] is None
        else:
            assert tuple(line["minus_base"].values()) == pytest.approx(row.difference)
    file = tmp_path / "scores.json"
    assert output(run, capsys, p_mix=[0.4], as_json=True, out=file) == f"{file}\n"
    assert strict_json(file.read_text()) == found


def test_json_to_the_standard_output_by_name_is_json_alone(run: Path, toy_site: Path) -> None:
    words = [str(run), "--json", "--out", "/dev/stdout"]
    done = subprocess.run(
        [sys.executable, "-m", "mixgrpo.evaluate", *words],
        env=toy.environment(toy_site),
        capture_output=True,
        text=True,
        check=True,
    )
    assert strict_json(done.stdout)["run"] == str(run)


def test_a_way_to_sample_has_one_row_however_often_it_is_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = strict_json(output(run, capsys, p_mix=[1.0, 0.8, 0.0, 0.8], as_json=True))
    assert [r["p_mix"] for r in found["rows"][:3]] == [0.0, 1.0, 0.8]
    assert len(found["rows"]) == 6


def test_options_reach_the_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def means(**options: Any) -> list[float]:
        found = strict_json(output(run, capsys, as_json=True, **options))
        return [r["mean"] for r in found["rows"]]

    usual = means()
    assert means() == usual
    for options in (
        {"seed": 4},
        {"steps": 6},
        {"shift": 2.0},
        {"images": 1},
        {"prompts": 1},
    ):
        assert means(**options) != usual, options
    base, pure = usual[0], usual[1]
    assert means(checkpoint=2)[0] == base
    assert means(checkpoint=2)[1] != pure


def test_the_base_model_alone_is_one_row_and_one_prompt_has_no_interval(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"checkpoint": 0, "p_mix": [0.8], "prompts": 1}
    found = strict_json(output(run, capsys, as_json=True, **options))
    assert [(r["reward"], r["policy"]) for r in found["rows"]] == [
        ("brightness", "base model"),
        ("contrast", "base model"),
    ]
    assert {(r["low"], r["high"]) for r in found["rows"]} == {(None, None)}
    text = output(run, capsys, **options)
    assert "nothing was trained at iteration 0" in text
    assert "One prompt alone has no interval" in text


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--p-mix", "-0.1"], "--p-mix -0.1"),
        (["--p-mix", "nan"], "--p-mix nan"),
        (["--reward", "beauty"], "beauty: not a name of mixgrpo.rewards"),
        (["--checkpoint", "9"], "no checkpoint of iteration 9; it has: 1, 2, 3, 4"),
        (["--steps", "0"], "--steps"),
        (["--shift", "nan"], "shift nan"),
        (["--shift", "fast"], "--shift fast: expected a number, or dynamic"),
        (["--shift", "dynamic"], "no schedule of its own"),
        (["--images", "0"], "--images"),
        (["--prompts", "-1"], "--prompts"),
        (["--images", "100000000"], "--images"),
        (["--images", "26", "--prompts", "2"], "26 images of 2 prompts, for 2 policies, are more"),
        (["--seed", "2147483648"], "--seed"),
        (["--out", "."], "is a folder; name a file in it"),
        (["--out", "no/such/file"], "no/such is not a folder"),
    ],
)
def test_misuse_is_one_line(
    words: list[str],
    part: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", str(run), *words])
    monkeypatch.setattr(command, "MOST_IMAGES", 100)
    with pytest.raises(SystemExit) as stopped:
        cli.run(command.main)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert part in text
    assert text.count("\n") == 1


def test_a_prompt_that_the_model_cannot_read_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: ToyPolicy, prompts: list[str]) -> Conditioning:
        raise ValueError(f"{prompts[-1]!r} is not a prompt of the toy")

    monkeypatch.setattr(ToyPolicy, "encode", encode)
    with pytest.raises(ConfigError, match=r"^model toy: 'prompt .*' is not a prompt of the toy$"):
        command.main(run)


def test_nothing_is_written_into_the_runs_folder(run: Path) -> None:
    with pytest.raises(ConfigError, match="only read"):
        command.main(run, out=run / "result.json")
