"""One run from its command to its result: killed, stopped, misused (faults: test_faults.py).

Whatever happens to a run, running it again must end with the bytes of an undisturbed one.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixgrpo import train
from mixgrpo.compute import phase
from mixgrpo.compute.phase import PhaseFile
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.sampling.plan import make_plan
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config
from mixgrpo.settings.identity import config_hash
from tests.mixgrpo import toy
from tests.mixgrpo.children import attempt
from tests.mixgrpo.outcomes import LONG, SMALL, flip, leftovers, lines, outcome, stopped_at

pytestmark = pytest.mark.usefixtures("toy_site")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> dict[str, Any]:
    """The outcome of SMALL, undisturbed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    assert train.run(SMALL, folder) == "finished"
    assert leftovers(folder) == []
    return outcome(folder)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> dict[str, Any]:
    """The outcome of LONG, undisturbed, in a process of its own."""
    folder = tmp_path_factory.mktemp("long") / "run"
    assert attempt(LONG, folder, toy_site) == 0
    return outcome(folder)


# ---- What a run leaves


def test_phases_and_log_lines_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    enter = PhaseFile.enter

    def note(self: PhaseFile, name: str, part: float | None = None) -> None:
        enter(self, name, part)
        said = phase.read(tmp_path)
        assert said is not None
        assert said.name == name
        if not seen or seen[-1] != name:
            seen.append(name)

    monkeypatch.setattr(PhaseFile, "enter", note)
    monkeypatch.setattr("mixgrpo.training.run._LOG_EVERY_S", 0.0)
    with caplog.at_level("INFO", "mixgrpo"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert seen[:4] == ["loading", "evaluating", "training", "saving"]
    assert not (tmp_path / phase.FILE).exists()
    said = [text for text in caplog.messages if " left; rollouts brightness " in text]
    assert [text.partition(": ")[2].partition(" of 4 iterations")[0] for text in said] == list(
        "1234"
    )
    assert "about 0 s left" in said[-1]


def test_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    assert train.run(SMALL, tmp_path) == "finished"
    metrics, evals = lines(tmp_path / "metrics.jsonl"), lines(tmp_path / "eval.jsonl")
    assert [line["iteration"] for line in metrics] == [0, 1, 2, 3]
    assert [line["iteration"] for line in evals] == [0, 2, 4]
    expected = {
        "iteration",
        "window_start",
        "window_size",
        "reward_brightness_mean",
        "reward_brightness_std",
        "advantage_mean",
        "advantage_std",
        "groups_without_variance",
        "ratio_max",
        "clip_fraction",
        "noise_floor",
        "log_ratio_sum_max",
        "grad_norm",
        "loss",
        "kl",
        "nfe_rollout",
        "nfe_train",
        "evaluations_computed",
        "backward_computed",
        "seconds_rollout",
        "seconds_decode",
        "seconds_reward",
        "seconds_update",
        "seconds_other",
        "seconds_total",
        "seconds_cpu",
        "memory_peak_bytes",
    }
    for line in metrics:
        assert expected <= line.keys()
        parts = [
            line[k]
            for k in line
            if k.startswith("seconds_") and k not in ("seconds_total", "seconds_cpu")
        ]
        assert sum(parts) == pytest.approx(line["seconds_total"])
        assert min(parts) >= 0
        assert all(isinstance(line[k], float) for k in line if k.startswith("seconds"))
    for line in evals:
        assert (line["prompts"], line["images"]) == (2, 4)
        assert {"reward_brightness_mean", "reward_contrast_mean", "seconds_total"} <= line.keys()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["schema"] == 1
    assert result["hash"] == config_hash(SMALL)
    assert (result["seed"], result["iterations"]) == (3, 4)
    for name in ("brightness", "contrast"):
        assert result["before"][name] == evals[0][f"reward_{name}_mean"]
        assert result["after"][name] == evals[-1][f"reward_{name}_mean"]
    plans = [make_plan(SMALL.sampler, SMALL.make_window().steps_at(m)) for m in range(4)]
    assert result["nfe_rollout"] == sum(p.steps for p in plans) / 4
    assert result["nfe_train"] == 2
    for key in ("evaluations_computed", "backward_computed", "seconds_total"):
        assert result[key] == pytest.approx(sum(line[key] for line in metrics))
    assert (
        RunConfig.model_validate_json(
            json.dumps(yaml.safe_load((tmp_path / "config.yaml").read_text()))
        )
        == SMALL
    )
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["000003", "000004"]
    assert json.loads((tmp_path / "samples" / "prompts.json").read_text()) == toy.PROMPTS[7:8]
    assert {p.name for p in (tmp_path / "samples").iterdir() if p.is_dir()} >= {"000000", "000004"}


def test_two_runs_are_the_same_and_another_seed_is_not(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    train.run(SMALL, tmp_path / "again")
    assert outcome(tmp_path / "again") == small
    train.run(SMALL.model_copy(update={"seed": 4}), tmp_path / "other")
    assert outcome(tmp_path / "other")["metrics"] != small["metrics"]


def test_what_is_kept_changes_no_result(tmp_path: Path, small: dict[str, Any]) -> None:
    data = SMALL.model_dump()
    data["output"] = {"checkpoint_every": 3, "checkpoints_kept": 1, "samples": 0}
    train.run(RunConfig.model_validate(data), tmp_path)
    found = outcome(tmp_path)
    for part in ("metrics", "eval", "result", "tensors"):
        assert found[part] == small[part]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000004"]


def test_one_image_alone_has_a_spread_that_is_a_number(tmp_path: Path) -> None:
    config = toy.config(iterations=1, evaluation={"prompts": 1, "images_per_prompt": 1})
    train.run(config, tmp_path)
    assert {line["reward_contrast_std"] for line in lines(tmp_path / "eval.jsonl")} == {0.0}


def test_a_finished_folder_returns_at_once_and_stays_as_it_is(tmp_path: Path) -> None:
    train.run(SMALL, tmp_path)

    def seen() -> dict[Path, tuple[bytes, int]]:
        files = (p for p in tmp_path.rglob("*") if p.is_file())
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in files}

    before = seen()
    begin = time.perf_counter()
    assert train.run(SMALL, tmp_path, lambda: True) == "finished"
    assert time.perf_counter() - begin < 0.2
    assert seen() == before


# ---- Stopping


@pytest.mark.parametrize("every", [1, 3])
def test_should_stop_is_asked_after_every_iteration(
    tmp_path: Path, small: dict[str, Any], every: int
) -> None:
    config = SMALL.model_copy(
        update={"output": SMALL.output.model_copy(update={"checkpoint_every": every})}
    )
    for done in range(4):
        metrics = tmp_path / "metrics.jsonl"

        def reached(metrics: Path = metrics, done: int = done) -> bool:
            return (len(lines(metrics)) if metrics.exists() else 0) >= done

        assert train.run(config, tmp_path, reached) == "stopped"
        assert (tmp_path / "checkpoints" / f"{done:06d}" / "manifest.json").exists()
        assert not (tmp_path / "result.json").exists()
    assert train.run(config, tmp_path) == "finished"
    found = outcome(tmp_path)
    for part in ("metrics", "eval", "result", "tensors", "samples"):
        assert found[part] == small[part]


def test_a_stop_does_not_wait_for_an_evaluation(tmp_path: Path, small: dict[str, Any]) -> None:
    """Asked to stop in the iteration before one, it leaves a checkpoint; the next attempt makes
    the evaluation good."""
    stopped_at(tmp_path, 2)  # an evaluation is due after 2 iterations
    assert [line["iteration"] for line in lines(tmp_path / "eval.jsonl")] == [0]
    assert (tmp_path / "checkpoints" / "000002" / "manifest.json").exists()
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_a_stop_during_an_evaluation_does_not_wait_for_another_iteration(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    evals = tmp_path / "eval.jsonl"
    assert train.run(SMALL, tmp_path, evals.exists) == "stopped"
    assert len(lines(evals)) == 1
    metrics = tmp_path / "metrics.jsonl"
    assert not metrics.exists() or lines(metrics) == []
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


# ---- Killing


def test_killed_at_every_operation_on_the_disk(
    tmp_path: Path, toy_site: Path, small: dict[str, Any]
) -> None:
    """Attempt n dies at its n-th write, rename or flush; then one goes through."""
    for number in range(1, 400):
        code = attempt(SMALL, tmp_path, toy_site, kill_at=number)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    assert number > 20
    assert outcome(tmp_path) == small
    assert [p for p in leftovers(tmp_path) if p.name.endswith(".partial")] == []


@pytest.mark.parametrize("first", range(4, 60, 5))
def test_killed_once_and_run_again(
    tmp_path: Path, toy_site: Path, small: dict[str, Any], first: int
) -> None:
    assert attempt(SMALL, tmp_path, toy_site, kill_at=first) == -signal.SIGKILL
    assert attempt(SMALL, tmp_path, toy_site) == 0
    assert outcome(tmp_path) == small


def start(config: RunConfig, folder: Path, site: Path, *options: str) -> subprocess.Popen[str]:
    """`python -m mixgrpo.train` as a user calls it."""
    file = folder.with_suffix(".yaml")
    file.write_text(dump_config(config))
    return subprocess.Popen(
        [sys.executable, "-m", "mixgrpo.train", str(file), "--out", str(folder), *options],
        env=toy.environment(site),
        cwd=toy.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(process: subprocess.Popen[str], metrics: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"the run did not get to {count} lines: {process.communicate()}")


def test_killed_by_sigkill_again_and_again(
    tmp_path: Path, toy_site: Path, long: dict[str, Any]
) -> None:
    folder, rng = tmp_path / "run", random.Random(5)
    for target in (4, 19, 37):
        process = start(LONG, folder, toy_site)
        wait_for_lines(process, folder / "metrics.jsonl", target + rng.randrange(4))
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(LONG, folder, toy_site)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip() == str(folder / "result.json")
    assert outcome(folder) == long


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(
    tmp_path: Path, toy_site: Path, long: dict[str, Any], number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(LONG, folder, toy_site)
    wait_for_lines(process, folder / "metrics.jsonl", 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    done = len(lines(folder / "metrics.jsonl"))
    assert 3 <= done < 60
    assert (folder / "checkpoints" / f"{done:06d}" / "manifest.json").exists()
    assert attempt(LONG, folder, toy_site) == 0
    assert outcome(folder) == long


# ---- The command


def command(site: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mixgrpo.train", *arguments],
        env=toy.environment(site),
        cwd=toy.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("window: {intervall: 3}", [], ["run.yaml:1", "window.intervall", "window.interval?"]),
        ("seed: {", [], ["run.yaml", "not valid YAML"]),
        ("seed: 1", ["--set", "window.size=99"], ["--set window.size=99", "longer"]),
        ("seed: 1", ["--set", "seed"], ["expected KEY=VALUE"]),
        ("model: {name: absent}", [], ["absent", "entry point"]),
        ("rollout: {prompts: 8}\nbase: toy.yaml", [], ["rollout.prompts", "8"]),
    ],
)
def test_what_the_user_wrote_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, toy_site: Path, text: str, options: list[str], parts: list[str]
) -> None:
    (tmp_path / "toy.yaml").write_text(dump_config(SMALL))
    (tmp_path / "run.yaml").write_text(text)
    code, out, err = command(
        toy_site, str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"), *options
    )
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize("arguments", [[], ["run.yaml"], ["no.yaml", "--out", "x", "--sett", "1"]])
def test_wrong_usage_is_exit_code_2(toy_site: Path, arguments: list[str]) -> None:
    assert command(toy_site, *arguments)[0] == 2


def test_what_fails_is_one_line(tmp_path: Path, toy_site: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(SMALL))
    (tmp_path / "file").write_text("")
    code, out, err = command(toy_site, str(tmp_path / "run.yaml"), "--out", str(tmp_path / "file"))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


def test_the_command_warns_of_a_corrupt_checkpoint_in_one_line(
    tmp_path: Path, toy_site: Path, small: dict[str, Any]
) -> None:
    folder = tmp_path / "out"
    stopped_at(folder, 3)
    flip(folder / "checkpoints" / "000003")
    (tmp_path / "run.yaml").write_text(dump_config(SMALL))
    code, out, err = command(toy_site, str(tmp_path / "run.yaml"), "--out", str(folder))
    assert (code, out.strip()) == (0, str(folder / "result.json"))
    warning, *progress = err.splitlines()
    assert warning.startswith("warning: ")
    assert "000003: corrupt checkpoint" in warning
    assert progress
    assert progress[0].endswith("out: goes on after 2 iterations")
    assert all("of 4 iterations" in line for line in progress[1:])
    assert outcome(folder) == small


def test_help_is_quick_and_needs_no_torch(toy_site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mixgrpo.train", "--help"],
        env=toy.environment(toy_site),
        cwd=toy.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--set" in done.stdout
    assert " torch\n" not in done.stderr


# ---- Folders


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (
        tmp_path / "file",
        tmp_path / "file" / "run",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises((RunError, ConfigError), match=str(place)[:20]):
            train.run(SMALL, place)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    stopped_at(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"config\.yaml: is of another run .* choose another"):
        train.run(SMALL.model_copy(update={"seed": 8}), tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace("# schema 1", "# schema 0"))
    with pytest.raises(ConfigError, match=r"another version .*schema 0"):
        train.run(SMALL, tmp_path)
    file.write_text("")
    with pytest.raises(ConfigError, match="another version"):
        train.run(SMALL, tmp_path)
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path: Path) -> None:
    bad = toy.config(optimizer={"name": "torch.optim.NoSuch"})
    with pytest.raises(ConfigError, match=r"optimizer\.name torch\.optim\.NoSuch"):
        train.run(bad, tmp_path)
    assert train.run(SMALL, tmp_path) == "finished"


def test_another_runs_folder_names_what_differs(tmp_path: Path) -> None:
    train.run(SMALL, tmp_path)
    shorter = SMALL.model_copy(update={"iterations": 3})
    with pytest.raises(ConfigError, match=r"is of another run \(iterations: 4, not 3\)"):
        train.run(shorter, tmp_path)


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*holds no run but other things \(report\.md\)"):
        train.check_place(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        train.check_place(tmp_path / "report.md")
    train.check_place(tmp_path / "new")
    (tmp_path / "new").mkdir()
    train.check_place(tmp_path / "new")
