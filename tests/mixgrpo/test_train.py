"""One run from its command to its result: killed, stopped, corrupted, out of space, misused.

Whatever happens to a run, running it again must end with the bytes of an undisturbed one.
"""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError

from mixgrpo import checkpoint, jsonlines, train
from mixgrpo.config import RunConfig, config_hash
from mixgrpo.configfile import dump_config
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.plan import make_plan
from tests.mixgrpo import toy
from tests.mixgrpo.children import attempt

pytestmark = pytest.mark.usefixtures("toy_site")

SMALL = toy.config(objective={"kl_weight": 0.01}, sampler={"tail_ratio": 0.5, "order": 2})
LONG = toy.config(iterations=60, evaluation={"every": 20}, output={"checkpoint_every": 7})


def lines(file: Path) -> list[dict[str, Any]]:
    """Every line of a jsonl file; all must be whole and strict JSON."""
    text = file.read_text()
    assert text.endswith("\n")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be the same for two runs of one configuration."""

    def reproducible(data: dict[str, Any]) -> str:
        kept = {k: v for k, v in data.items() if not k.startswith(("seconds", "memory"))}
        return json.dumps(kept)

    newest = max(p for p in (folder / "checkpoints").iterdir() if p.name.isdigit())
    return {
        "metrics": [reproducible(line) for line in lines(folder / "metrics.jsonl")],
        "eval": [reproducible(line) for line in lines(folder / "eval.jsonl")],
        "result": reproducible(json.loads((folder / "result.json").read_text())),
        "config": (folder / "config.yaml").read_bytes(),
        "newest": newest.name,
        "tensors": {f.name: f.read_bytes() for f in newest.iterdir()},
        "samples": {
            str(f.relative_to(folder)): f.read_bytes()
            for f in (folder / "samples").rglob("*")
            # A writer that was killed may leave its hidden temporary file.
            if f.is_file() and not f.name.startswith(".")
        },
    }


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith(".partial") or ".tmp" in p.name[-4:]]


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
        "memory_peak_bytes",
    }
    for line in metrics:
        assert expected <= line.keys()
        parts = [line[k] for k in line if k.startswith("seconds_") and k != "seconds_total"]
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
        answers = iter([False, True] if done else [True])
        assert train.run(config, tmp_path, lambda a=answers: next(a)) == "stopped"
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
def test_a_signal_leaves_a_checkpoint_and_exit_code_130(
    tmp_path: Path, toy_site: Path, long: dict[str, Any], number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    process = start(LONG, folder, toy_site)
    wait_for_lines(process, folder / "metrics.jsonl", 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    done = len(lines(folder / "metrics.jsonl"))
    assert 3 <= done < 60
    assert (folder / "checkpoints" / f"{done:06d}" / "manifest.json").exists()
    assert attempt(LONG, folder, toy_site) == 0
    assert outcome(folder) == long


# ---- Files that were spoiled


def stopped_at(folder: Path, done: int) -> None:
    polls = iter([False] * done + [True])
    assert train.run(SMALL, folder, lambda: next(polls)) == "stopped"


def _truncate(place: Path) -> None:
    file = place / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(place: Path) -> None:
    file = place / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [_truncate, _flip, lambda p: (p / "manifest.json").unlink()],
    ids=["cut", "bit", "gone"],
)
def test_a_corrupt_checkpoint_is_passed_over_to_the_same_end(
    tmp_path: Path, small: dict[str, Any], spoil: Any
) -> None:
    stopped_at(tmp_path, 3)
    spoil(tmp_path / "checkpoints" / "000003")
    with pytest.warns(UserWarning, match=r"000003: corrupt checkpoint"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_all_checkpoints_corrupt_starts_over(tmp_path: Path, small: dict[str, Any]) -> None:
    stopped_at(tmp_path, 3)
    for place in checkpoint.checkpoints(tmp_path / "checkpoints"):
        _flip(place)
    with pytest.warns(UserWarning, match="corrupt"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_a_checkpoint_of_another_format_stops(tmp_path: Path) -> None:
    stopped_at(tmp_path, 2)
    file = tmp_path / "checkpoints" / "000002" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(RunError, match="000002: a checkpoint of format 99"):
        train.run(SMALL, tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
@pytest.mark.parametrize(
    "cut", ["half", '{"iteration": 2}', '{"iteration": 9, "x": [1', "\x00\x00"]
)
def test_a_last_line_cut_short_is_dropped(
    tmp_path: Path, small: dict[str, Any], name: str, cut: str
) -> None:
    stopped_at(tmp_path, 2)
    with (tmp_path / name).open("a") as stream:
        stream.write(cut)
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_metrics_that_lack_lines_before_the_checkpoint_stop(tmp_path: Path) -> None:
    stopped_at(tmp_path, 3)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text().split("\n", 1)[0] + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl: 1 lines for 3 finished"):
        train.run(SMALL, tmp_path)


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


# ---- Disks


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)],
            capture_output=True,
            check=False,
        ).returncode
    )
    if not mounted:
        pytest.skip("a disk of known size needs the right to mount one")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave no byte: first large pieces, then the rest."""
    with (place / "filler").open("wb", buffering=0) as stream:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(b"\x00" * size)


@pytest.mark.parametrize("every", [1, 100])
def test_a_full_disk_stops_and_room_lets_it_finish(
    tmp_path: Path, every: int, small: dict[str, Any]
) -> None:
    """With a checkpoint every iteration it is the first to fail, else the metrics are."""
    config = toy.config(iterations=40, output={"checkpoint_every": every})
    undisturbed = tmp_path / "undisturbed"
    train.run(config, undisturbed)
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "run"
        polls = 0

        def fill_once() -> bool:
            nonlocal polls
            polls += 1
            if polls == 3:
                fill(disk)
            return False

        for _ in range(2):  # also a second try without room
            with pytest.raises(RunError, match=r"No space left.*run the same command again"):
                train.run(config, folder, fill_once)
        assert not (folder / "result.json").exists()
        (disk / "filler").unlink()
        assert train.run(config, folder) == "finished"
        assert outcome(folder) == outcome(undisturbed)
        assert [p for p in leftovers(folder) if p.suffix == ".partial"] == []


@pytest.mark.parametrize("where", ["metrics", "checkpoint", "eval"])
def test_a_write_that_fails_is_one_clear_error(
    tmp_path: Path, where: str, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    append, save_file, calls = jsonlines.append, checkpoint.save_file, 0

    def full(file: Path, line: dict[str, Any]) -> None:
        nonlocal calls
        calls += where in file.name
        if where in file.name and calls == 2:
            with file.open("a") as stream:
                stream.write(json.dumps(line)[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        append(file, line)

    def full_file(tensors: Any, file: Path) -> None:
        nonlocal calls
        calls += 1
        if where == "checkpoint" and calls == 5:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(jsonlines, "append", full)
        patch.setattr(checkpoint, "save_file", full_file if where == "checkpoint" else save_file)
        with pytest.raises(RunError, match=r"No space left.*run the same command again"):
            train.run(SMALL, tmp_path)
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (
        tmp_path / "file",
        tmp_path / "file" / "run",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises((RunError, ConfigError), match=str(place)[:20]):
            train.run(SMALL, place)


def test_a_read_only_place(tmp_path: Path) -> None:
    if os.geteuid():
        place = tmp_path / "read-only"
        place.mkdir(mode=0o500)
        with pytest.raises(RunError, match="Permission denied"):
            train.run(SMALL, place / "run")
        return
    with small_disk(tmp_path / "disk") as disk:  # to root only a mount says no
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunError, match="Read-only file system"):
            train.run(SMALL, disk / "run")


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
    _flip(folder / "checkpoints" / "000003")
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


def test_a_run_that_never_began_leaves_its_folder_free(tmp_path: Path) -> None:
    bad = toy.config(optimizer={"name": "torch.optim.NoSuch"})
    with pytest.raises(ConfigError, match=r"optimizer\.name torch\.optim\.NoSuch"):
        train.run(bad, tmp_path)
    assert train.run(SMALL, tmp_path) == "finished"


def test_another_runs_folder_names_what_differs(tmp_path: Path) -> None:
    train.run(SMALL, tmp_path)
    longer = SMALL.model_copy(update={"iterations": 9})
    with pytest.raises(ConfigError, match=r"is of another run \(iterations: 4, not 9\)"):
        train.run(longer, tmp_path)


def test_a_folder_of_other_things_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"--out .*holds no run but other things \(report\.md\)"):
        train.check_place(tmp_path)
    with pytest.raises(ConfigError, match="is not a folder"):
        train.check_place(tmp_path / "report.md")
    train.check_place(tmp_path / "new")
    (tmp_path / "new").mkdir()
    train.check_place(tmp_path / "new")
