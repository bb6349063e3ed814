"""One attempt at one run, in this process: ownership, records, reasons, stopping."""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.launching.job import Job, make_job
from harness.launching.pack import Pack
from harness.runs import folder as folders
from harness.runs.folder import STOP, read_attempts
from harness.runs.result import read_result
from harness.study.spec import Run
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from tests.harness.lab import HERE, Lab


def never() -> bool:
    return False


@pytest.fixture
def run(lab: Lab) -> Run:
    return lab.sweep.runs[0]


@pytest.fixture
def job(lab: Lab, run: Run, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.syspath_prepend(str(HERE))
    folder = lab.runs / "toy" / run.folder_name
    folder.mkdir(parents=True)
    return make_job(folder, run.config, train="fake_train:run")


def behave(monkeypatch: pytest.MonkeyPatch, **behaviour: Any) -> None:
    monkeypatch.setenv("FAKE_TRAIN", json.dumps({"*": behaviour}))


def reasons(job: Job) -> list[str | None]:
    return [attempt.reason for attempt in read_attempts(Path(job.folder))]


def test_a_job_finishes_and_leaves_a_record_and_its_environment(job: Job) -> None:
    assert job.run(never) == "finished"
    folder = Path(job.folder)
    assert read_result(folder) is not None
    (attempt,) = read_attempts(folder)
    assert (attempt.number, attempt.reason, attempt.error) == (1, "finished", None)
    assert attempt.ended is not None
    assert attempt.ended >= attempt.started
    env = json.loads((folder / "env.json").read_text())
    assert env["threads"] == 1
    assert env["device"] == "cpu"
    assert env["versions"]["torch"]
    assert set(env) == {
        "commit",
        "dirty",
        "python",
        "versions",
        "system",
        "cpu",
        "threads",
        "device",
    }


def test_the_config_survives_the_way_into_the_job(job: Job, run: Run) -> None:
    assert type(run.config).model_validate_json(job.config) == run.config


@pytest.mark.parametrize(
    ("behaviour", "reason", "error"),
    [
        ({"raise_at": 2}, "exception", "Traceback"),
        ({"config_error": True}, "config", "more prompts than there are"),
        ({"no_space_at": 2}, "no-space", "no space left; free some and run again"),
        ({"repeatable_at": 2}, "exception", "the reward clip raised"),
        ({"wrapped_at": 2}, "exception", "Traceback"),
    ],
)
def test_every_failure_is_recorded_with_its_reason(
    behaviour: dict[str, Any],
    reason: str,
    error: str,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    behave(monkeypatch, **behaviour)
    assert job.run(never) == reason
    (attempt,) = read_attempts(Path(job.folder))
    assert attempt.reason == reason
    assert error in (attempt.error or "")
    assert error in capfd.readouterr().err  # the log has it too
    behave(monkeypatch)
    assert job.run(never) == "finished"
    assert reasons(job) == [reason, "finished"]


def test_an_error_around_an_exception_keeps_its_traceback_and_ends_with_its_message(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, wrapped_at=2)
    job.run(never)
    (attempt,) = read_attempts(Path(job.folder))
    assert "ValueError: the fake trainer was told to raise" in (attempt.error or "")
    assert attempt.last_line == "reward clip: failed"


def test_what_an_earlier_version_put_into_a_queue_is_found() -> None:
    assert pickle.loads(b"charness.job\nJob\n.") is Job
    assert pickle.loads(b"charness.pack\nPack\n.") is Pack


@pytest.mark.filterwarnings("default")
def test_warnings_are_recorded_when_they_happen_each_once(
    job: Job, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, warn="the clip range lies\nbelow the noise floor")
    meanwhile: list[tuple[str, ...]] = []

    def watching() -> bool:
        meanwhile.append(read_attempts(Path(job.folder))[-1].warnings)
        return False

    for _ in range(2):  # python itself would not warn twice from one place
        (Path(job.folder) / "result.json").unlink(missing_ok=True)
        shutil.rmtree(Path(job.folder) / "checkpoints", ignore_errors=True)
        assert job.run(watching) == "finished"
        assert "below the noise floor" in capfd.readouterr().err
    text = "the clip range lies below the noise floor"
    assert [a.warnings for a in read_attempts(Path(job.folder))] == [(text,), (text,)]
    assert meanwhile[-1] == (text,)


def test_a_record_says_where_the_job_ran_and_the_lock_who_holds_it(job: Job) -> None:
    signed: list[str] = []

    def look_at_lock() -> bool:
        signed.append(lease.holder(Path(job.folder) / OWNER))
        return False

    assert job.run(look_at_lock) == "finished"
    (attempt,) = read_attempts(Path(job.folder))
    assert (attempt.executor, attempt.host) == ("inline", socket.gethostname())
    assert signed[0].startswith(f"process {os.getpid()} on {socket.gethostname()}")


def test_a_stop_file_and_a_signal_both_stop_after_the_iteration(job: Job) -> None:
    asked = iter([False, False, False, True])
    assert job.run(lambda: next(asked)) == "stopped"
    folder = Path(job.folder)
    before = (folder / "metrics.jsonl").read_text()
    (folder / STOP).touch()
    assert job.run(never) == "stopped"
    assert (folder / "metrics.jsonl").read_text() == before
    (folder / STOP).unlink()
    assert job.run(never) == "finished"
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert reasons(job) == ["stopped", "stopped", "finished"]


def test_a_folder_that_is_owned_is_left_alone(job: Job) -> None:
    held = lease.acquire(Path(job.folder) / OWNER)
    assert held is not None
    assert lease.is_held(held.folder)
    assert job.run(never) == "busy"
    assert read_attempts(Path(job.folder)) == ()
    held.release()
    assert not lease.is_held(held.folder)
    assert job.run(never) == "finished"


def test_an_attempt_that_was_killed_is_closed_by_the_next(job: Job) -> None:
    folder = Path(job.folder)
    (folder / "attempts").mkdir(parents=True)
    killed = {"number": 1, "pid": 1, "job_id": None, "started": 5.0, "ended": None}
    (folder / "attempts" / "1.json").write_text(json.dumps(killed))
    assert job.run(never) == "finished"
    first, second = read_attempts(folder)
    assert (first.reason, first.ended) == ("killed", 5.0)
    assert (first.executor, first.host, first.warnings) == (None, None, ())
    assert (second.number, second.reason) == (2, "finished")


def test_a_record_that_cannot_be_written_loses_only_words(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[..., None] = folders.write_json

    def full_at_the_end(path: Path, data: dict[str, Any]) -> None:
        if data.get("ended"):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(folders, "write_json", full_at_the_end)
    assert job.run(never) == "finished"
    assert reasons(job) == [None]


def test_a_trainer_that_cannot_be_imported_is_a_failure_with_a_record(lab: Lab, run: Run) -> None:
    (lab.runs / "x").mkdir(parents=True)
    job = make_job(lab.runs / "x", run.config, train="no_such_module:run")
    assert job.run(never) == "exception"
    assert "no_such_module" in (read_attempts(lab.runs / "x")[0].error or "")


def test_threads_are_set_and_gpus_are_those_given_or_the_schedulers() -> None:
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    assert Job("folder", "{}", threads=2).variables() == threads
    for gpu in ("3", ""):
        seen = Job("folder", "{}", threads=2, gpu=gpu).variables()
        assert seen == threads | {"CUDA_VISIBLE_DEVICES": gpu}
