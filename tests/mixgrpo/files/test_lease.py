"""Leases between real processes: on one machine by locks, between machines by touches alone."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixgrpo.files import lease

ELSEWHERE = """
import sys, time
from pathlib import Path
from mixgrpo.files import lease
import fcntl
lease.PATIENCE_S = float(sys.argv[2])
lease.MACHINE = sys.argv[3]
def refuse(*_):
    raise OSError(int(sys.argv[4]), "no locks here")
lease.fcntl.flock = refuse
held = lease.acquire(Path(sys.argv[1]))
print("held" if held else "refused", flush=True)
if held:
    sys.stdin.readline()
    held.release()
    print("released", flush=True)
"""
"""A machine on a file system without locks, as far as a lease can tell."""

HERE = """
import sys
from pathlib import Path
from mixgrpo.files import lease
held = lease.acquire(Path(sys.argv[1]))
print("held" if held else "refused", flush=True)
sys.stdin.readline()
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from mixgrpo.files import lease
lease.os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
lease.acquire(Path(sys.argv[1]))
"""

PATIENCE_S = 1.0
NO_LOCKS = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    children: list[subprocess.Popen[str]] = []

    def begin(script: str, *arguments: str) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "owner"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.kill()
        child.communicate()


def said(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def elsewhere(
    start: Callable[..., "subprocess.Popen[str]"], machine: str, error: int = errno.ENOSYS
) -> "subprocess.Popen[str]":
    return start(ELSEWHERE, str(PATIENCE_S), machine, str(error))


def test_one_owner_at_a_time_and_the_next_one_when_it_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "owner"
    assert not lease.is_held(folder)
    first = lease.acquire(folder)
    assert first is not None
    assert lease.is_held(folder)
    assert f"process {os.getpid()} on" in lease.holder(folder)
    assert lease.acquire(folder, patience_s=0.1) is None
    first.release()
    assert not lease.is_held(folder)
    second = lease.acquire(folder)
    assert second is not None
    assert second.number == first.number + 1
    assert [p.name for p in folder.iterdir()] == [second.path.name]
    second.release()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    assert not lease.is_held(tmp_path / "owner")
    assert lease.Watch().holds(tmp_path / "owner") is False
    assert not (tmp_path / "owner").exists()


def test_a_killed_owner_on_this_machine_is_gone_at_once(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    child = start(HERE)
    assert said(child) == "held"
    assert lease.is_held(tmp_path / "owner")
    child.kill()
    child.wait()
    assert not lease.is_held(tmp_path / "owner")
    begin = time.monotonic()
    held = lease.acquire(tmp_path / "owner")
    assert held is not None
    assert time.monotonic() - begin < 1
    held.release()


def test_a_frozen_owner_on_this_machine_stays_the_owner(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.3)
    child = start(HERE)
    assert said(child) == "held"
    child.send_signal(signal.SIGSTOP)
    watch, begin = lease.Watch(), time.monotonic()
    while time.monotonic() - begin < 0.6:
        assert watch.holds(tmp_path / "owner")
        time.sleep(0.05)
    assert lease.acquire(tmp_path / "owner", patience_s=0.2) is None


def test_an_owner_elsewhere_is_known_by_its_touches_whatever_the_clocks_say(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    owner = elsewhere(start, "a")
    assert said(owner) == "held"
    file = next((tmp_path / "owner").glob("0*"))
    for skew in (-3600, 3600):  # as a server with another idea of the time would store it
        os.utime(file, (time.time() + skew,) * 2)
        assert said(elsewhere(start, "b")) == "refused"
    owner.communicate("\n")
    begin = time.monotonic()
    assert said(elsewhere(start, "b")) == "held"
    assert time.monotonic() - begin < PATIENCE_S + 2


def test_an_owner_elsewhere_that_died_is_replaced_after_the_patience_and_not_before(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    owner = elsewhere(start, "a")
    assert said(owner) == "held"
    owner.kill()
    owner.wait()
    begin = time.monotonic()
    assert said(elsewhere(start, "b")) == "held"
    assert PATIENCE_S <= time.monotonic() - begin < PATIENCE_S + 5


@pytest.mark.parametrize("error", NO_LOCKS)
def test_without_locks_the_touches_decide_on_one_machine_too(
    start: Callable[..., "subprocess.Popen[str]"], error: int
) -> None:
    owner = elsewhere(start, "a", error)
    assert said(owner) == "held"
    assert said(elsewhere(start, "a", error)) == "refused"
    owner.kill()
    owner.wait()
    begin = time.monotonic()
    assert said(elsewhere(start, "a", error)) == "held"
    assert PATIENCE_S <= time.monotonic() - begin < PATIENCE_S + 5


def test_an_owner_that_could_not_lock_is_not_dead_to_one_that_can(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", PATIENCE_S)
    assert said(elsewhere(start, lease.MACHINE, errno.ENOLCK)) == "held"
    assert lease.is_held(tmp_path / "owner")
    assert lease.acquire(tmp_path / "owner", patience_s=0.1) is None


def test_one_look_at_an_owner_elsewhere_bears_clocks_that_are_minutes_apart(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    owner = elsewhere(start, "a")
    assert said(owner) == "held"
    owner.send_signal(signal.SIGSTOP)  # or it would touch its file in between
    file = next((tmp_path / "owner").glob("0*"))
    for skew, held in ((-600, True), (600, True), (-3600, False), (3600, True)):
        os.utime(file, (time.time() + skew,) * 2)
        assert lease.is_held(tmp_path / "owner") is held, skew


def test_who_comes_late_with_a_number_that_is_free_again_does_not_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = tmp_path / "owner", os.link
    owners: list[lease.Lease | None] = []

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        # While this one sleeps its number is taken and given back, and the next one removes it.
        first = lease.acquire(folder)
        assert first is not None
        assert first.path == target
        first.release()
        owners.append(lease.acquire(folder))
        assert not target.exists()
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    owners.append(lease.acquire(folder, patience_s=0.1))
    owner, second = owners
    assert second is None
    assert owner is not None
    assert not owner.taken_over()
    assert lease.is_held(folder)
    owner.release()
    heir = lease.acquire(folder)
    assert heir is not None
    assert list(folder.iterdir()) == [heir.path]
    heir.release()


def test_what_a_process_left_that_was_killed_while_it_took_a_lease_goes_after_a_day(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]
) -> None:
    folder = tmp_path / "owner"
    assert start(KILLED).wait(20) == -signal.SIGKILL
    (left,) = folder.iterdir()
    for hours, stays in ((1, True), (25, False)):
        os.utime(left, (time.time() - hours * 3600,) * 2)
        held = lease.acquire(folder)
        assert held is not None
        assert set(folder.iterdir()) == ({left, held.path} if stays else {held.path})
        held.release()


def test_an_owner_that_was_frozen_and_replaced_ends_without_a_word_of_its_own(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    owner = elsewhere(start, "a")
    assert said(owner) == "held"
    owner.send_signal(signal.SIGSTOP)
    heir = elsewhere(start, "b")
    assert said(heir) == "held"
    owner.send_signal(signal.SIGCONT)
    assert owner.wait(10) == lease.TAKEN_OVER
    assert owner.stderr is not None
    assert "another process took over" in owner.stderr.read()
    assert heir.poll() is None


def _race(folder: Path, gate: "multiprocessing.synchronize.Event", rounds: int) -> None:
    gate.wait()
    for _ in range(rounds):
        held = lease.acquire(folder / "owner", patience_s=20)
        assert held is not None
        # The critical section: a file that only one may have open at a time.
        descriptor = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
        os.close(descriptor)
        with (folder / "count").open("a") as stream:
            stream.write("x")
        (folder / "inside").unlink()
        held.release()


@pytest.mark.parametrize("locks", [True, False])
def test_of_many_at_once_one_at_a_time_is_inside(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:

        def refuse(*_: object) -> None:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr(lease.fcntl, "flock", refuse)
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    processes = [context.Process(target=_race, args=(tmp_path, gate, 5)) for _ in range(8)]
    for process in processes:
        process.start()
    gate.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "x" * 40


def test_a_lease_goes_over_to_a_forked_process(tmp_path: Path) -> None:
    held = lease.acquire(tmp_path / "owner")
    assert held is not None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        held.sign()
        held.keep()
        os.write(writing, b"x")
        time.sleep(30)
        os._exit(0)
    os.read(reading, 1)
    held._over.set()
    os.close(held.descriptor)  # the parent ends
    assert lease.is_held(tmp_path / "owner")
    assert f"process {child} on" in lease.holder(tmp_path / "owner")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not lease.is_held(tmp_path / "owner")


# ---- folders that are renamed, removed or replaced --------------------------------------------


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[lease.Lease]:
    (tmp_path / "run").mkdir()
    held = lease.acquire(tmp_path / "run" / "owner")
    assert held is not None
    held.ends_process = False
    yield held
    held.release()


def test_an_owner_in_its_place_is_not_gone(owned: lease.Lease) -> None:
    assert not owned.gone()
    owned.check()


@pytest.mark.parametrize("how", ["renamed", "removed", "replaced", "copied", "emptied", "a file"])
def test_an_owner_whose_folder_is_gone_knows_it(owned: lease.Lease, how: str) -> None:
    run, away = owned.folder.parent, owned.folder.parents[1] / "away"
    if how == "emptied":
        shutil.rmtree(owned.folder)
    elif how == "removed":
        shutil.rmtree(run)
    else:
        run.rename(away)
    if how == "replaced":
        (run / "owner").mkdir(parents=True)
        (run / "owner" / owned.path.name).write_text("{}")
    if how == "copied":
        shutil.copytree(away, run)
    if how == "a file":
        run.write_text("")
    assert owned.gone()
    with pytest.raises(lease.FolderGoneError, match=r"run: was renamed, removed or replaced"):
        owned.check()
    if how == "renamed":
        away.rename(run)
        owned.check()  # put back in time


def test_what_only_looks_like_a_folder_that_is_gone(
    owned: lease.Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that a network file system hides for a moment, and a disk in trouble."""
    real, left = Path.stat, [errno.ENOENT, errno.ESTALE]

    def stat(path: Path, **how: bool) -> os.stat_result:
        if path == owned.path and left:
            raise OSError(left.pop(), "", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    left[:] = [errno.ENOENT]
    assert not owned.gone()
    left[:] = [errno.EIO] * 9
    assert not owned.gone()
    left[:] = [errno.ESTALE] * 9  # the server knows the folder no more
    assert owned.gone()


def test_an_owner_that_was_replaced_by_another_process_is_not_gone(owned: lease.Lease) -> None:
    heir = lease._take(owned.folder, owned.number + 1)
    assert heir is not None
    assert owned.taken_over()
    assert not owned.gone()  # `keep` says that it was taken over
    heir.release()


def test_a_lease_is_not_made_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lease.acquire(tmp_path / "run" / "owner")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_look_is_ended_when_its_folder_is_gone(
    tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXGRPO_LEASE_SECONDS", "0.5")
    child = start(HERE)
    assert said(child) == "held"
    (tmp_path / "owner").rename(tmp_path / "away")
    assert child.wait(20) == 1
    assert child.stderr is not None
    error = child.stderr.read()
    assert "was renamed, removed or replaced" in error
