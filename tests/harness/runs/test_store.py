"""Runs are stored once: five sweeps that ask for one run compute it once, whatever ends when."""

import errno
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.results import collect
from harness.analysis.samples import read_samples
from harness.launching.plan import describe, foresee
from harness.probing.tasks import tasks
from harness.runs import store
from harness.runs.folder import STOP
from harness.runs.ledger import ledger
from harness.runs.state import look_at_all
from harness.runs.store import STORE, links, stored_folder, unused
from mixgrpo import train
from mixgrpo.files.records import DamagedFileError
from mixgrpo.runs.location import locate
from tests.harness.lab import SMALL, Lab
from tests.harness.launching import toys
from tests.harness.launching.toys import launch, same, write_sweep

pytestmark = pytest.mark.usefixtures("toy_site")


def test_a_run_of_two_sweeps_is_computed_once_and_counted_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    theirs, _ = launch(write_sweep(tmp_path, {"base": {}}, "first"), runs)
    sweep = write_sweep(tmp_path, {"constant": {}, "other": {"optimizer.lr": 0.01}})
    plan = describe(
        sweep, look_at_all(sweep, runs), 1, foresee(sweep, look_at_all(sweep, runs), runs)
    )
    assert "1 of 2 runs is finished already, for another sweep; saves 12 of 24 iterations" in plan
    states, said = launch(sweep, runs)
    folder = theirs["base"].folder
    assert f"constant-seed0: the same run as {folder}, which it shares" in said
    mine = states["constant"].folder
    assert mine.is_symlink()
    assert not mine.readlink().is_absolute()
    assert mine.resolve() == folder.resolve() == stored_folder(sweep.runs[0], runs).resolve()
    assert [a.sweep for a in states["constant"].attempts] == ["first"]
    train.run(sweep.runs[0].config, tmp_path / "alone")
    assert same(mine) == same(tmp_path / "alone")
    # Its hours are the first sweep's, and the report says who trained it.
    total = ledger(states.values(), runs / "toy").total.seconds
    assert total == ledger([states["other"]], runs / "toy").total.seconds > 0
    assert ledger(theirs.values(), runs / "first").total.seconds > 0
    rows = collect(sweep, runs).runs.set_index("arm")
    assert dict(rows["shared"]) == {"constant": 12, "other": 0}
    assert dict(rows["trained_by"]) == {"constant": "first", "other": "toy"}
    assert rows.loc["constant", "shared_seconds"] == pytest.approx(
        rows.loc["constant", "seconds_total"]
    )
    # Whoever removes the first sweep removes no run of the second.
    shutil.rmtree(runs / "first")
    assert look_at_all(sweep, runs)[0].state == "finished"
    # The runs can be moved as a whole.
    runs.rename(tmp_path / "elsewhere")
    assert look_at_all(sweep, tmp_path / "elsewhere")[0].state == "finished"


def test_what_is_to_be_in_the_folder_is_part_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    first = write_sweep(tmp_path, {"base": {}}, "first")
    launch(first, runs)
    monkeypatch.setitem(toys.SETTINGS, "health", {"drift": False})
    other = write_sweep(tmp_path, {"constant": {}}, "third")
    assert other.runs[0].hash == first.runs[0].hash
    states, _ = launch(other, runs)
    assert [a.sweep for a in states["constant"].attempts] == ["third"]


def test_without_sharing_every_run_is_computed_in_its_sweep(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, {"base": {}}, "first"), runs)
    states, _ = launch(write_sweep(tmp_path, {"constant": {}}), runs, share=False)
    assert not states["constant"].folder.is_symlink()
    assert [a.sweep for a in states["constant"].attempts] == ["toy"]


def test_runs_that_an_earlier_version_left_are_used_where_they_lie(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = write_sweep(tmp_path, {"base": {}}, "first")
    states, _ = launch(first, runs, share=False)
    folder = states["base"].folder
    record = json.loads((folder / "attempts" / "1.json").read_text())
    del record["sweep"]
    (folder / "attempts" / "1.json").write_text(json.dumps(record))
    again, _ = launch(first, runs)
    assert len(again["base"].attempts) == 1  # its own sweep's: nothing to do
    sweep = write_sweep(tmp_path, {"constant": {}})
    shared, _ = launch(sweep, runs)
    assert shared["constant"].folder.resolve() == folder.resolve()
    assert ledger(shared.values(), runs / "toy").total.seconds == 0
    assert ledger(again.values(), runs / "first").total.seconds > 0
    assert dict(collect(sweep, runs).runs["trained_by"]) == {0: "first"}
    # One that is damaged, or lacks what is asked for, is not taken.
    (folder / "eval.jsonl").write_text("")
    fresh, _ = launch(write_sweep(tmp_path, {"again": {}}, "again"), runs)
    assert [a.sweep for a in fresh["again"].attempts] == ["again"]


def test_a_disk_without_links_has_files_in_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, target: Any, target_is_directory: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "symlink_to", refused)
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, {"base": {}}, "first"), runs)
    sweep = write_sweep(tmp_path, {"constant": {}})
    states, _ = launch(sweep, runs)
    path = runs / "toy" / sweep.runs[0].folder_name
    assert path.is_file()
    assert [a.sweep for a in states["constant"].attempts] == ["first"]
    assert states["constant"].folder.resolve() == stored_folder(sweep.runs[0], runs).resolve()
    rows = collect(sweep, runs).runs
    assert list(rows["state"]) == ["finished"]
    assert list(rows["trained_by"]) == ["first"]
    assert unused(runs) == []
    # Pictures and probes, too.
    assert read_samples(sweep, {("constant", 0)}, runs) is not None
    probed = replace(sweep, probes={"hybrid": {}})
    assert [task.folder for task in tasks(probed, runs)] == [states["constant"].folder]
    path.write_text("{")
    with pytest.raises(DamagedFileError, match="remove it, and the sweep's command makes it again"):
        locate(path)


@pytest.mark.parametrize("code", ["EACCES", "ENOSPC"])
def test_a_disk_that_refuses_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refused(path: Path, target: Any, target_is_directory: bool = False) -> None:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), str(path))

    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(OSError, match=str(tmp_path)):
        store.link(tmp_path / "run", tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_at_once_share_one_run_and_neither_stops_the_others(lab: Lab) -> None:
    lab.write(SMALL)
    slow = {"*": {"seconds": 0.3}}
    first = lab.launch("--jobs", "2", fake=slow)
    lab.wait_for(lambda s: all(x.iteration >= 1 for x in s.values()))
    other = lab.file.with_name("other.yaml")
    other.write_text(SMALL.replace("name: toy", "name: other"))
    second = _launch(lab, other, slow)
    second.send_signal(2)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 130, output
    assert "which it shares" in output
    assert not any((s.folder / STOP).exists() for s in lab.states().values())
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert all(len(reasons) == 1 for reasons in lab.attempts().values())
    code, output = _finish(lab, other)
    assert code == 0, output
    assert all(len(reasons) == 1 for reasons in lab.attempts().values())


def _launch(lab: Lab, file: Path, fake: dict[str, Any]) -> Any:
    """A launcher on another file of the lab, once it follows the runs of the first."""
    process = lab.launch("--jobs", "2", fake=fake, file=file)
    name = file.stem
    for _ in range(200):
        if len(list((lab.runs / name).glob("*-seed*"))) == 2:
            return process
        time.sleep(0.05)
    raise TimeoutError(name)


def _finish(lab: Lab, file: Path) -> tuple[int, str]:
    process = lab.launch("--jobs", "2", file=file)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_rerun_and_prune_know_who_else_uses_a_run(lab: Lab) -> None:
    lab.write(SMALL)
    other = lab.file.with_name("other.yaml")
    other.write_text(SMALL.replace("name: toy", "name: other"))
    assert lab.finish("--jobs", "2")[0] == 0
    assert _finish(lab, other)[0] == 0
    before = {name: state.folder.resolve() for name, state in lab.states().items()}
    # --rerun makes the run anew, for all who use it.
    code, output = lab.finish("--rerun", "interval=1-seed0", "--yes", "--jobs", "2")
    assert code == 0, output
    assert "other uses it, too, and gets the new one" in output
    states = lab.states()
    assert states["interval=1-seed0"].folder.resolve() == before["interval=1-seed0"]
    assert [a.number for a in states["interval=1-seed0"].attempts] == [1]
    # --prune takes the link where another sweep uses the run, and the run where none does.
    lab.write(SMALL.replace("[1, 3]", "[1]"))
    code, output = lab.finish("--prune", "--yes", "--jobs", "2")
    assert code == 0, output
    assert "(used by other), which stays" in output
    assert before["interval=3-seed0"].is_dir()
    shutil.rmtree(lab.runs / "other")
    assert unused(lab.runs) == [lab.runs / STORE / before["interval=3-seed0"].name]
    code, output = lab.finish("--prune", "--yes", "--jobs", "2")
    assert code == 0, output
    assert not before["interval=3-seed0"].exists()
    assert unused(lab.runs) == []
    assert set(links(lab.runs)) == {before["interval=1-seed0"]}
    # What was moved comes back by the command that was said.
    command = next(x for x in output.splitlines() if x.startswith("to put them back: "))
    assert os.system(command.removeprefix("to put them back: ")) == 0
    assert before["interval=3-seed0"].is_dir()


def test_the_evaluation_before_training_is_made_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arms = {
        "a": {},
        "b": {"optimizer.lr": 0.01, "window.interval": 2},
        "c": {"evaluation.steps": 4},
    }
    states, _ = launch(write_sweep(tmp_path, arms), runs)

    def first(arm: str) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(
            (states[arm].folder / "eval.jsonl").read_text().split("\n")[0]
        )
        return line

    assert first("a") == first("b")  # to the second that it took
    assert first("a")["seconds_total"] != first("c")["seconds_total"]
    train.run(states["b"].run.config, tmp_path / "alone")
    assert same(states["b"].folder) == same(tmp_path / "alone")
    assert [s.attempts[0].evaluation_taken for s in states.values()] == [False, True, False]
    paid = ledger([states["b"]], runs / "toy").useful.seconds
    lines = (states["b"].folder / "eval.jsonl").read_text().splitlines()
    judged = [json.loads(line)["seconds_total"] for line in lines]
    trained = sum(
        json.loads(line)["seconds_total"]
        for line in (states["b"].folder / "metrics.jsonl").read_text().splitlines()
    )
    assert paid == pytest.approx(trained + sum(judged[1:]), abs=1e-6)
    kept = sorted((runs / STORE / "evaluations").iterdir())
    assert len(kept) == 2
    # A damaged one is made again by the run itself.
    for folder in kept:
        (folder / "evaluation.json").write_text('{"iteration": 0}')
    states, _ = launch(write_sweep(tmp_path, {"d": {"optimizer.lr": 0.02}}, "more"), runs)
    assert states["d"].state == "finished"


def _point(path: Path, at: str) -> None:
    """What stands in for a link."""
    path.unlink()
    path.write_text(at)


@pytest.mark.parametrize("as_link", [True, False])
def test_what_leads_to_another_run_is_never_taken_for_it(lab: Lab, as_link: bool) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2")[0] == 0
    one, other = (lab.states()[f"interval={k}-seed0"].folder for k in (1, 3))
    target = f"../{STORE}/{other.resolve().name}"
    if as_link:
        one.unlink()
        one.symlink_to(target)
    else:
        _point(one, json.dumps({"stored": target}))
    state = lab.states()["interval=1-seed0"]
    assert state.state == "lost"
    assert "result of another run" in str(state.damage)
    assert len(collect(lab.sweep, lab.runs).finished) == 1
    code, output = lab.finish("--jobs", "2")
    assert code == 2, output
    assert f"{one}: leads to" in output
    assert len(lab.attempts()["interval=3-seed0"]) == 1
    one.unlink()
    assert lab.finish("--jobs", "2")[0] == 0
    assert one.resolve() != other.resolve()


@pytest.mark.parametrize(
    "text", ["", "garbage", '{"stored": 5}', '{"stored": "\\u0000x"}', '{"stored": "/etc"}']
)
def test_one_bad_entry_is_one_lost_run(lab: Lab, text: str) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2")[0] == 0
    bad = lab.states()["interval=1-seed0"].folder
    _point(bad, text)
    states = lab.states()
    assert [s.state for s in states.values()] == ["lost", "finished"]
    results = collect(lab.sweep, lab.runs)
    assert len(results.finished) == 1
    code, output = lab.finish("--jobs", "2")
    assert code == 2, output
    assert f"error: {bad}: " in output
    assert "remove it" in output
    bad.unlink()
    assert lab.finish("--jobs", "2")[0] == 0
    assert len(lab.attempts()["interval=1-seed0"]) == 1


def test_a_folder_of_somebody_elses_is_never_written_to(lab: Lab) -> None:
    lab.write(SMALL)
    victim = lab.root / "victim"
    victim.mkdir()
    (victim / "notes.txt").write_text("mine")
    folder = lab.runs / "toy" / lab.sweep.runs[0].folder_name
    folder.parent.mkdir(parents=True)
    folder.symlink_to(victim)
    for options in ((), ("--no-share",)):
        code, output = lab.finish("--jobs", "2", *options)
        assert code == 2, output
        assert "which is no run's; remove it" in output
    assert [p.name for p in victim.iterdir()] == ["notes.txt"]


def test_a_stored_run_that_was_removed_is_computed_again_for_all(lab: Lab) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2")[0] == 0
    for state in lab.states().values():
        shutil.rmtree(state.folder.resolve())
    assert [s.state for s in lab.states().values()] == ["waiting", "waiting"]
    code, output = lab.finish("--jobs", "2")
    assert code == 0, output
    assert all(s.state == "finished" for s in lab.states().values())


def test_a_run_of_an_earlier_version_that_another_sweep_uses_stays(lab: Lab) -> None:
    lab.write(SMALL)
    assert lab.finish("--jobs", "2", "--no-share")[0] == 0
    other = lab.file.with_name("other.yaml")
    other.write_text(SMALL.replace("name: toy", "name: other"))
    assert _finish(lab, other)[0] == 0
    lab.write(SMALL.replace("[1, 3]", "[1]"))
    used = next((lab.runs / "toy").glob("interval=3-*"))
    code, output = lab.finish("--prune", "--yes", "--jobs", "2")
    assert code == 0, output
    assert f"{used}: used by other, stays" in output
    assert used.is_dir()


def test_a_run_that_another_sweep_stopped_goes_on(lab: Lab) -> None:
    lab.write(SMALL.replace("[1, 3]", "[1]"))
    other = lab.file.with_name("other.yaml")
    other.write_text(SMALL.replace("[1, 3]", "[1]").replace("name: toy", "name: other"))
    slow = {"*": {"seconds": 0.5}}
    first = lab.launch("--jobs", "1", fake=slow)
    lab.wait_for(lambda s: all(x.iteration >= 1 for x in s.values()))
    second = lab.launch("--jobs", "1", fake=slow, file=other)
    for _ in range(200):
        if list((lab.runs / "other").glob("*-seed*")):
            break
        time.sleep(0.05)
    time.sleep(0.5)  # until it follows the run
    first.send_signal(15)
    assert first.wait(timeout=60) == 143
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0, output
    assert lab.attempts()["interval=1-seed0"] == ["stopped", "finished"]


def test_a_changed_evaluation_before_training_is_made_again(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, {"a": {}}), runs)
    (kept,) = (runs / STORE / "evaluations").iterdir()
    record = json.loads((kept / "evaluation.json").read_text())
    record["line"]["reward_contrast_mean"] = 0.1111
    (kept / "evaluation.json").write_text(json.dumps(record))
    states, _ = launch(write_sweep(tmp_path, {"d": {"optimizer.lr": 0.02}}, "more"), runs)
    line = json.loads((states["d"].folder / "eval.jsonl").read_text().split("\n")[0])
    assert line["reward_contrast_mean"] != 0.1111
    # The entry is whole again for the next one.
    states, _ = launch(write_sweep(tmp_path, {"e": {"optimizer.lr": 0.03}}, "next"), runs)
    assert states["e"].attempts[0].evaluation_taken
