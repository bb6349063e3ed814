"""What a run printed: which run, which log, and following it while it is written."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.runs.logs import find_log, find_run
from harness.slurm import submissions
from mixgrpo.errors import ConfigError

PATIENCE_S = 20.0

OWNER = """\
import sys, pathlib
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
held = lease.acquire(pathlib.Path(sys.argv[1]) / OWNER)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def make_run(runs: Path, name: str, sweep: str = "toy") -> Path:
    folder = runs / sweep / name
    (folder / "attempts").mkdir(parents=True)
    (folder / "log").mkdir()
    return folder


def attempt(folder: Path, number: int, text: str | None, job: str | None = None) -> None:
    """An attempt with its log; without one where it ran inline."""
    log = None if text is None else f"log/attempt-{number}.log"
    if log is not None:
        (folder / log).write_text(text or "")
    record = {"number": number, "pid": 1, "started": 1.0, "log": log, "job_id": job}
    file = folder / "attempts" / f"{number}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record))
    partial.replace(file)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "harness.logs", *map(str, arguments)]


def logs(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S)


# ---- which run -------------------------------------------------------------------------------


def test_a_run_is_found_by_its_folder_and_by_its_name(runs: Path) -> None:
    folder = make_run(runs, "interval=1-seed1-0a1b2c3d")
    make_run(runs, "interval=1-seed10-0a1b2c3d")
    assert find_run(str(folder), Path("nowhere")) == folder
    assert find_run("interval=1-seed1", runs) == folder  # not seed10
    assert find_run(folder.name, runs) == folder
    assert find_run("interval=1-seed10", runs).name == "interval=1-seed10-0a1b2c3d"


def test_the_folder_that_the_status_names_is_found_before_anything_began(runs: Path) -> None:
    folder = runs / "toy" / "interval=1-seed1-0a1b2c3d"
    folder.mkdir(parents=True)
    assert find_run(str(folder), runs) == folder
    with pytest.raises(ConfigError, match="no job has begun yet"):
        find_log(folder)


def test_a_name_of_several_runs_or_of_none_is_refused(runs: Path) -> None:
    make_run(runs, "tau=5-seed0-00000000")
    make_run(runs, "tau=5-seed0-11111111")
    make_run(runs, "tau=5-seed0-00000000", sweep="other")
    with pytest.raises(ConfigError, match=r"tau=5-seed0: fits 3 runs \(.*; give the folder"):
        find_run("tau=5-seed0", runs)
    with pytest.raises(ConfigError, match=r"tau=6-seed0: no run of this name under .*status"):
        find_run("tau=6-seed0", runs)
    done = logs("tau=6-seed0", "--runs", runs)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: tau=6-seed0: no run of this name")
    assert done.stderr.count("\n") == 1


# ---- which log -------------------------------------------------------------------------------


def test_the_newest_attempt_is_shown_or_the_one_asked_for(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    for number in (1, 9, 10):
        attempt(folder, number, f"first {number}\nlast {number}\n")
    assert logs(folder).stdout == "first 10\nlast 10\n"
    assert logs("tau=5-seed0", "--runs", runs, "--attempt", 9).stdout == "first 9\nlast 9\n"
    assert logs(folder, "--lines", 1).stdout == "last 10\n"
    done = logs(folder, "--attempt", 2)
    assert done.returncode == 2
    assert "--attempt 2: " in done.stderr
    assert "has the attempts 1, 9, 10" in done.stderr


def test_what_cannot_be_shown_says_why(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    with pytest.raises(ConfigError, match="no job has begun yet"):
        find_log(folder)
    attempt(folder, 1, "gone soon")
    attempt(folder, 2, None)
    with pytest.raises(ConfigError, match=r"attempt 2 ran inline: .* terminal of its launcher"):
        find_log(folder)
    (folder / "log" / "attempt-1.log").unlink()
    done = logs(folder, "--attempt", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert "attempt-1.log: is gone" in done.stderr


def test_a_damaged_record_of_the_newest_attempt_is_named(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    attempt(folder, 1, "one")
    attempt(folder, 2, "two")
    (folder / "attempts" / "1.json").write_text("{")
    assert find_log(folder).name == "attempt-2.log"
    (folder / "attempts" / "2.json").write_text("{")
    with pytest.raises(ConfigError, match=r"2\.json: is not whole JSON; remove it"):
        find_log(folder)
    attempt(folder, 1, "one")
    with pytest.raises(ConfigError, match=r"2\.json: is not whole JSON; remove it"):
        find_log(folder)


def test_a_job_of_slurms_that_began_no_attempt_shows_its_own_log(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    attempt(folder, 1, "of the first job\n", job="6")
    made = submissions.new(folder.parent, "toy", [["another"], [folder.name]], {})
    submissions.write(folder.parent, replace(made, job="7"))
    # Queued: nothing is printed yet, and the attempt before is the newest word.
    assert find_log(folder) == folder / "log" / "attempt-1.log"
    early = submissions.folder(folder.parent) / made.token / "7_1_0_log.out"
    early.write_text("ModuleNotFoundError: No module named 'torch'\n")
    assert find_log(folder) == early
    assert logs(folder).stdout == "ModuleNotFoundError: No module named 'torch'\n"
    assert find_log(folder, 1) == folder / "log" / "attempt-1.log"
    attempt(folder, 2, "of the second job\n", job="7_1")
    assert find_log(folder) == folder / "log" / "attempt-2.log"


# ---- following -------------------------------------------------------------------------------


class Follower:
    """`harness.logs --follow` on a run that a real process owns."""

    def __init__(self, folder: Path) -> None:
        self.owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.owner.stdout is not None
        assert self.owner.stdout.readline() == "held\n"
        self.process = subprocess.Popen(
            command(folder, "--follow"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.seen = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen += line

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} is not in {self.seen!r}"
            time.sleep(0.05)

    def end(self) -> tuple[int, str]:
        """Exit code and what was said beside the log."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    def close(self) -> None:
        for process in (self.owner, self.process):
            process.kill()
            process.wait()


@pytest.fixture
def followed(runs: Path) -> Iterator[tuple[Path, Follower]]:
    folder = make_run(runs, "tau=5-seed0-00000000")
    attempt(folder, 1, "one\n")
    follower = Follower(folder)
    yield folder, follower
    follower.close()


def test_follow_prints_what_is_added_and_ends_with_the_owner(
    followed: tuple[Path, Follower],
) -> None:
    folder, follower = followed
    follower.wait_for("one\n")
    with (folder / "log" / "attempt-1.log").open("a") as log:
        log.write("two\n")
    follower.wait_for("two\n")
    # The next attempt of the same job, as after a requeue.
    attempt(folder, 2, "three\n")
    follower.wait_for("three\n")
    assert follower.process.poll() is None
    with (folder / "log" / "attempt-2.log").open("a") as log:
        log.write("four\n")
    follower.owner.kill()
    code, said = follower.end()
    assert code == 0
    assert follower.seen == "one\ntwo\nthree\nfour\n"
    assert said == "".join(f"==> {folder}/log/attempt-{n}.log <==\n" for n in (1, 2))


def test_ctrl_c_ends_following_without_a_traceback(followed: tuple[Path, Follower]) -> None:
    folder, follower = followed
    follower.wait_for("one\n")
    with (folder / "log" / "attempt-1.log").open("a") as log:
        log.write("two\n")
    follower.wait_for("two\n")  # it follows: from here on a Ctrl-C is the way to end it
    follower.process.send_signal(signal.SIGINT)
    code, said = follower.end()
    assert code == 130
    assert said == f"==> {folder}/log/attempt-1.log <==\n"
    assert follower.owner.poll() is None


def test_a_run_that_nobody_owns_is_shown_and_not_waited_for(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    attempt(folder, 1, "one\n")
    done = logs(folder, "--follow")
    assert (done.returncode, done.stdout) == (0, "one\n")


def test_following_a_run_that_has_not_begun_waits_for_it(runs: Path) -> None:
    folder = make_run(runs, "tau=5-seed0-00000000")
    process = subprocess.Popen(
        command(folder, "--follow"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == f"{folder}: no job has begun yet; waiting\n"
    attempt(folder, 1, "one\n")
    seen, _ = process.communicate(timeout=20)
    assert (process.returncode, seen) == (0, "one\n")


def test_a_log_moves_no_cursor_and_a_progress_bar_becomes_lines(runs: Path) -> None:
    folder = make_run(runs, "interval=1-seed1-0a1b2c3d")
    attempt(folder, 1, "10 %\r20 %\r\n\x1b[31mred\x1b[0m \u202e\n")
    shown = logs(folder).stdout
    assert shown.splitlines() == ["10 %", "20 %", r"\x1b[31mred\x1b[0m \u202e"]


@pytest.mark.parametrize(
    "log", ["../../../../precious", "{}", "log/../../precious", "log/link", "a\0b"]
)
def test_a_record_names_no_log_outside_its_run(runs: Path, log: str) -> None:
    folder = make_run(runs, "tau=5-seed0-0a1b2c3d")
    precious = folder.parent / "precious"
    precious.write_text("secret")
    (folder / "log" / "link").symlink_to(precious)
    attempt(folder, 1, "")
    file = folder / "attempts" / "1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"log": log.format(precious)}))
    said = logs(folder)
    assert said.returncode == 2
    assert "names a log outside its folder" in said.stderr
    assert "secret" not in said.stdout + said.stderr
