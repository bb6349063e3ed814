"""SIGINT and SIGTERM end every command, also one that was started with SIGINT ignored."""

import ast
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mixgrpo import cli, train
from mixgrpo.compute import signals
from mixgrpo.errors import RunError
from mixgrpo.settings.configfile import dump_config
from tests.mixgrpo import moody, toy

BOTH = [signal.SIGINT, signal.SIGTERM]
# As `sh -c 'command & wait'` starts what is in the background.
IN_BACKGROUND = ["sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The test's process has the same handlers before and after, whatever a test does."""
    before = {number: signal.getsignal(number) for number in (*BOTH, signal.SIGHUP)}
    yield
    after = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


def started(*words: str, mood: str = "", sites: Sequence[Path] = ()) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (toy.ROOT, *sites)))}
    return subprocess.Popen(
        [*IN_BACKGROUND, sys.executable, *words],
        env={**environment, "MOOD": mood},
        cwd=toy.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hears(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether a process has a handler for a signal, as the kernel knows it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


def has_socket(process: "subprocess.Popen[str]") -> bool:
    with contextlib.suppress(FileNotFoundError):  # a file that it has just closed
        names = [os.readlink(fd) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]  # noqa: PTH115
        return any(name.startswith("socket:") for name in names)
    return False


# ---- Every command


def commands() -> list[Path]:
    """The modules that are run with `python -m`."""
    files = [*toy.ROOT.glob("mixgrpo/**/*.py"), *toy.ROOT.glob("harness/**/*.py")]
    return [file for file in sorted(files) if '__name__ == "__main__"' in file.read_text()]


@pytest.mark.parametrize("file", commands(), ids=lambda file: file.stem)
def test_every_command_is_run_by_the_one_function_that_installs_handlers(file: Path) -> None:
    inside = {
        "job.py",
        "worker.py",
        "preflight.py",  # processes that a command starts and ends itself
        "main.py",  # one of the commands
    }
    last = ast.parse(file.read_text()).body[-1]
    assert isinstance(last, ast.If), "the guard comes last"
    called = ast.unparse(last.body[-1])
    pattern = r"(cli\.run|run_command)\(main(, ranks=True)?\)"
    assert file.name in inside or re.fullmatch(pattern, called)


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("module", ["mixgrpo.evaluate", "harness.report"])
def test_a_command_can_be_ended_while_it_is_imported(module: str, number: int) -> None:
    process = started("-m", module, "no-such-place")
    while not hears(process, number):
        assert process.poll() is None, "it ended before it heard anything"
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, "error: interrupted\n")


@pytest.mark.parametrize("number", BOTH)
def test_a_command_at_work_can_be_ended(
    toy_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An evaluation whose reward never answers."""
    monkeypatch.syspath_prepend(site := moody.install(tmp_path / "site"))
    folder = tmp_path / "run"
    config = toy.config(rewards={"train": {"moody": 1.0}}, iterations=1)
    assert train.run(config, folder) == "finished"
    process = started(
        "-m", "mixgrpo.evaluate", str(folder), mood="1:socket", sites=[toy_site, site]
    )
    while not has_socket(process):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, "error: interrupted\n")


@pytest.mark.parametrize("number", BOTH)
def test_training_ends_after_a_checkpoint(toy_site: Path, tmp_path: Path, number: int) -> None:
    config = toy.config(
        iterations=100_000, evaluation={"every": 10**5}, output={"checkpoint_every": 9}
    )
    (tmp_path / "run.yaml").write_text(dump_config(config))
    folder = tmp_path / "run"
    words = ["-m", "mixgrpo.train", str(tmp_path / "run.yaml"), "--out", str(folder)]
    process = started(*words, sites=[toy_site])
    while not (folder / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "stopped with a checkpoint" in err
    done = (folder / "metrics.jsonl").read_bytes().count(b"\n")
    assert (folder / "checkpoints" / f"{done:06d}").is_dir()


# ---- The helper


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("ignored", [False, True])
def test_handlers_are_installed_and_given_back(number: int, ignored: bool) -> None:
    outside = signal.signal(number, signal.SIG_IGN) if ignored else signal.getsignal(number)
    inside = signal.getsignal(number)
    with signals.noted() as noted:
        os.kill(os.getpid(), number)
        signals.pause(60, noted)
    assert noted == [number]
    assert signal.getsignal(number) is inside
    signal.signal(number, outside)


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard: list[int] = []
    with signals.handling(heard.append, [signal.SIGHUP]):
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)
    assert heard == []


def test_in_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with signals.noted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("number", BOTH)
def test_a_command_ends_with_one_line_and_the_signals_code(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command"])

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except Exception:  # a command's own handling of errors does not take it for one
            pytest.fail("an interruption is no error")

    with pytest.raises(SystemExit) as ended:
        cli.run(command)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_that_code_in_c_made_an_error_of_is_an_interruption(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch does where the signal comes while it reads a tensor of safetensors."""
    monkeypatch.setattr(sys, "argv", ["command"])

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except signals.Interrupted:
            raise RunError("could not determine the shape of a storage") from None

    with pytest.raises(SystemExit) as ended:
        cli.run(command)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "error: interrupted\n"
