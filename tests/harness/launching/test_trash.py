"""Runs that are moved out of a sweep: what is listed, asked and moved, and how it comes back."""

import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launching import trash
from harness.study.spec import only, single_runs
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from tests.harness.lab import HERE, SEARCHED, SMALL, SWEEP, Lab

ONE = SMALL.replace("[1, 3]", "[1]")


def nothing_queued(names: set[str]) -> set[str]:
    return set()


def made_run(folder: Path, finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# a run\n")
    (folder / "metrics.jsonl").write_bytes(b"x" * 5000)
    (folder / "checkpoints" / "000004").mkdir(parents=True)
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def run_shell(command: str, cwd: Path) -> None:
    subprocess.run(["sh", "-c", command], cwd=cwd, check=True)


def commands(said: list[str]) -> dict[str, str]:
    """The commands in what `move` says, by what they are for."""
    return dict(line.split(": ", 1) for line in said if line.startswith("to "))


def test_what_is_moved_is_listed_and_the_printed_command_puts_it_back(tmp_path: Path) -> None:
    sweep = tmp_path / "my runs" / "toy"
    runs = [made_run(sweep / "a-seed0-1"), made_run(sweep / "b-seed0-2", finished=False)]
    before = sorted(p for p in sweep.rglob("*") if p.name != OWNER and OWNER not in p.parts)
    items = [trash.look_at(folder) for folder in runs]
    assert [str(item) for item in items] == [
        f"{runs[0]}: 5.0 KB, finished",
        f"{runs[1]}: 5.0 KB, unfinished, with a checkpoint of 4 iterations",
    ]
    said: list[str] = []
    place = trash.move(items, said.append, nothing_queued)
    assert place.parent == sweep / ".trash"
    assert [p.name for p in sorted(place.iterdir())] == ["a-seed0-1", "b-seed0-2"]
    assert not any(run.exists() for run in runs)
    run_shell(commands(said)["to put them back"], tmp_path)
    after = sorted(p for p in sweep.rglob("*") if OWNER not in p.parts and ".trash" not in p.parts)
    assert [p for p in after if p.name != OWNER] == before
    said.clear()
    trash.move([trash.look_at(runs[0])], said.append, nothing_queued)
    run_shell(commands(said)["to free the space"], tmp_path)
    assert runs[1].exists()
    assert not any((sweep / ".trash").glob("*/a-*"))


def test_of_a_linked_run_only_the_link_is_moved(tmp_path: Path) -> None:
    sweep, store = tmp_path / "toy", made_run(tmp_path / "store" / "content")
    sweep.mkdir()
    link = sweep / "a-seed0-1"
    link.symlink_to("../store/content")
    held = lease.acquire(store / OWNER)  # another sweep's job runs in it
    assert held is not None
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    item = trash.look_at(link)
    assert "a link to ../store/content, which stays" in str(item)
    said: list[str] = []
    place = trash.move([item], said.append, nothing_queued)
    assert (place / link.name).is_symlink()
    assert not link.is_symlink()
    assert {p for p in store.rglob("*") if p.is_file()} == set(before)
    assert not (store / "stop").exists()
    run_shell(commands(said)["to put them back"], tmp_path)
    assert (link / "result.json").exists()
    held.release()


def test_links_inside_a_run_are_neither_counted_nor_followed(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    (big / "data").write_bytes(b"x" * 10**6)
    run = made_run(tmp_path / "toy" / "a-seed0-1")
    (run / "link").symlink_to(big)
    (run / "file").symlink_to(big / "data")
    assert trash.size_of(run) < 10_000
    trash.move([trash.look_at(run)], [].append, nothing_queued)
    assert (big / "data").stat().st_size == 10**6


def test_a_crash_in_between_leaves_each_run_in_one_of_the_two_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "toy"
    runs = [made_run(sweep / f"a-seed{k}-{k}") for k in range(3)]
    real = Path.rename

    def fails(folder: Path, place: Path) -> Path:
        if folder == runs[1]:
            raise OSError(5, "Input/output error", str(folder))
        return real(folder, place)

    monkeypatch.setattr(Path, "rename", fails)
    said: list[str] = []
    with pytest.raises(OSError, match="Input/output"):
        trash.move([trash.look_at(run) for run in runs], said.append, nothing_queued)
    assert [run.exists() for run in runs] == [False, True, True]
    monkeypatch.undo()
    run_shell(commands(said)["to put them back"], tmp_path)
    assert all((run / "result.json").exists() for run in runs)


def test_what_shares_its_job_with_others_is_not_moved(tmp_path: Path) -> None:
    run = made_run(tmp_path / "toy" / "a-seed0-1")
    with pytest.raises(RunError, match=r"a-seed0-1: waits in one job with runs that stay"):
        trash.move([trash.look_at(run, {run.name})], [].append, lambda names: names)
    assert run.exists()
    assert not (tmp_path / "toy" / ".trash").exists()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (3.2e9, "3.2 GB")]
)
def test_sizes_in_words(count: float, text: str) -> None:
    assert trash.size_text(count) == text


def test_prune_asks_on_a_terminal_and_elsewhere_wants_yes(lab: Lab) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2")[0] == 0
    gone = lab.states()["interval=3-seed0"].folder
    lab.write(ONE)
    code, output = lab.finish("--prune")
    assert code == 2, output
    assert f"  {gone}: " in output
    assert "finished" in output
    assert "error: --prune: there is no terminal to ask on, so nothing was moved; add --yes" in (
        output
    )
    assert gone.exists()
    for answer, code in (("n", 1), ("y", 0)):
        found, output = on_a_terminal(lab, answer, "--prune")
        assert found == code, output
        assert gone.exists() == (answer == "n")
        assert ("nothing was moved, and nothing was started" in output) == (answer == "n")
    assert "no longer in" not in lab.finish()[1]  # the trash is no run
    assert "no longer in" not in lab.finish("--plan")[1]
    code, output = lab.finish("--prune")  # nothing to ask
    assert code == 0, output


def on_a_terminal(lab: Lab, answer: str, *options: str) -> tuple[int, str]:
    """A launcher that is answered on a terminal: exit code and output."""
    ours, theirs = pty.openpty()
    folders = ["--runs", str(lab.runs), "--reports", str(lab.root / "reports")]
    child = subprocess.Popen(
        [sys.executable, str(HERE / "fake_sweep.py"), str(lab.file), *folders, *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": SEARCHED, "CUDA_VISIBLE_DEVICES": "", "FAKE_TRAIN": "{}"},
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    output = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        output += part
    os.close(ours)
    return child.wait(timeout=60), output.decode()


def test_rerun_runs_one_run_anew_and_keeps_the_old_one(lab: Lab) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2", fake={"interval=3-seed0": {"raise_at": 2}})[0] == 1
    failed, finished = (lab.states()[f"interval={k}-seed0"].folder for k in (3, 1))
    code, output = lab.finish("--rerun", "interval=1-seed0")
    assert code == 2, output
    assert "--rerun: there is no terminal to ask on, so nothing was moved; add --yes" in output
    assert lab.attempts()["interval=1-seed0"] == ["finished"]
    for name, folder in (("interval=1-seed0", finished), (failed.name, failed)):
        code, output = lab.finish("--rerun", name, "--yes")
        assert code == 0, output
        assert output.count(": started") == 1
        assert "1 of 1 runs finished" in output
        assert len(list((lab.runs / "toy" / ".trash").glob(f"*/{folder.name}"))) == 1
    assert lab.attempts() == {"interval=1-seed0": ["finished"], "interval=3-seed0": ["finished"]}


def test_rerun_computes_what_could_be_copied(lab: Lab) -> None:
    """Another sweep has the same run finished: it is asked for anew all the same."""
    lab.write(ONE)
    assert lab.finish()[0] == 0
    shutil.copytree(lab.runs / "toy", lab.runs / "twin")
    old = (lab.states()["interval=1-seed0"].folder / "result.json").stat().st_mtime_ns
    code, output = lab.finish("--rerun", "interval=1-seed0", "--yes")
    assert code == 0, output
    assert "copied" not in output
    assert "interval=1-seed0: started" in output
    result = lab.states()["interval=1-seed0"].folder / "result.json"
    assert result.stat().st_mtime_ns != old
    run_shell(commands(output.splitlines())["to put them back"], lab.root)
    assert result.stat().st_mtime_ns == old
    assert len(list((lab.runs / "toy" / ".trash").glob("*-new/*/result.json"))) == 1


def test_a_run_that_is_a_link_to_nowhere_is_named(lab: Lab) -> None:
    lab.write(ONE)
    folder = lab.states()["interval=1-seed0"].folder
    folder.parent.mkdir(parents=True)
    folder.symlink_to("../unmounted")
    code, output = lab.finish()
    assert (code, output) == (
        2,
        f"error: {folder}: is a link to {lab.runs / 'unmounted'}, which does not exist; restore "
        "its target, or remove it, and the run is taken from the store or computed again\n",
    )
    folder.rename(folder.with_name("old-seed0-00000000"))
    code, output = lab.finish("--prune", "--yes")
    assert code == 0
    assert "old-seed0-00000000: a link to ../unmounted" in output


def test_only_takes_arms_and_single_runs(lab: Lab) -> None:
    def names(*wanted: str) -> list[str]:
        return [run.name for run in only(lab.sweep, wanted).runs]

    lab.write(SWEEP)
    folder = lab.sweep.runs[3].folder_name
    assert names("interval=3-seed1") == ["interval=3-seed1"]
    assert names(folder) == ["interval=3-seed1"]
    assert names("interval=1", "interval=3-seed1") == [
        "interval=1-seed0",
        "interval=1-seed1",
        "interval=3-seed1",
    ]
    assert names() == [run.name for run in lab.sweep.runs]
    assert [run.name for run in single_runs(lab.sweep, [folder], "--rerun")] == ["interval=3-seed1"]
    with pytest.raises(ConfigError, match=r"--only interval=3-seed7: .*did you mean interval=3-se"):
        names("interval=3-seed7")
    with pytest.raises(ConfigError, match=r"--only zzz: no such arm or run; .*interval=1-seed0"):
        names("zzz")
    with pytest.raises(ConfigError, match=r"--rerun interval=1: is an arm; .*interval=1-seed0"):
        single_runs(lab.sweep, ["interval=1"], "--rerun")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--yes",), "--yes: answers the question of --prune and --rerun"),
        (("--plan", "--rerun", "interval=1-seed0"), "--rerun: moves runs and starts others"),
        (("--cancel", "--prune"), "--prune: moves runs and starts others"),
        (("--rerun", "interval=9-seed0"), "no such arm or run; did you mean"),
    ],
)
def test_options_that_do_not_go_together(lab: Lab, options: tuple[str, ...], error: str) -> None:
    code, output = lab.finish(*options)
    assert (code, error in output) == (2, True), output
    assert not lab.runs.exists()
