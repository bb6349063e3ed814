"""What is computed once: real runs of the toy end with the bytes that each would have alone."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.results import collect
from harness.launching import adopt as adoption
from harness.launching.adopt import UnfitError, adopt
from harness.launching.dispatch import Inline
from harness.launching.job import make_job
from harness.launching.launcher import Launcher
from harness.launching.plan import foresee
from harness.launching.screen import Progress
from harness.launching.sharing import KEPT, Sharing
from harness.launching.trunk import Trunk
from harness.runs import environment
from harness.runs.folder import checkpoints_of, origin, read_attempts, trained_by
from harness.runs.ledger import ledger
from harness.runs.store import RunState, look_at_all
from harness.slurm.submissions import Scheduler
from harness.study.load import load_sweep
from harness.study.spec import Sweep, only
from mixgrpo import train
from mixgrpo.files import manifest
from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import ORIGIN, sealed
from mixgrpo.settings.config import RunConfig
from tests.mixgrpo import toy
from tests.mixgrpo.outcomes import flip, leftovers, outcome

pytestmark = pytest.mark.usefixtures("toy_site")

SETTINGS = toy.settings(
    iterations=12,
    sampler={"steps": 8},
    window={"interval": 3},
    evaluation={"every": 3, "steps": 3},
    output={"checkpoint_every": 5},
)
del SETTINGS["seed"]

Arms = dict[str, dict[str, Any]]
ARMS: Arms = {
    "constant": {},
    "stride": {"window.stride": 2},
    "slow": {"window.interval": 5},
    "frozen": {"window.strategy": "frozen"},
    "decay": {"window.strategy": "linear-decay"},
    "same": {"window.strategy": "exp-decay"},
    "long": {"iterations": 14},
    "other": {"optimizer.lr": 0.01},
}


def write_sweep(folder: Path, arms: Arms, name: str = "toy", seeds: int = 1) -> Sweep:
    file = folder / f"{name}.yaml"
    about = {"name": name, "question": "Is it the same?", "seeds": seeds, "measure": "contrast"}
    file.write_text(json.dumps(about | {"set": SETTINGS, "arms": arms}))
    return load_sweep(file)


def launch(
    sweep: Sweep, runs: Path, part: Sweep | None = None, share: bool = True
) -> tuple[dict[str, RunState], list[str]]:
    """Run a sweep in this process: states by arm, those of the first seed, and what was said."""
    said: list[str] = []
    progress = Progress("contrast", False)
    progress.say = said.append  # type: ignore[method-assign, assignment]
    (runs / sweep.name).mkdir(parents=True, exist_ok=True)
    launcher = Launcher(
        part or sweep,
        runs,
        progress,
        lambda stop: Inline(stop),
        Scheduler(runs / sweep.name),
        sharing=Sharing(sweep, runs) if share else None,
    )
    assert launcher.go()
    first = [s for s in look_at_all(sweep, runs) if s.run.seed == 0]
    return {state.run.arm: state for state in first}, said


def same(folder: Path) -> dict[str, Any]:
    """What must be the same for a run from a trunk: the file of settings says what it keeps."""
    found = outcome(folder)
    del found["config"]
    del found["manifest"]
    exported = folder / "weights" / "weights.safetensors"
    return found | {"exported": exported.read_bytes()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> dict[str, dict[str, Any]]:
    """Every arm by itself, from its beginning."""
    place = tmp_path_factory.mktemp("alone")
    found = {}
    for run in write_sweep(place, ARMS).runs:
        train.run(run.config, place / run.arm)
        found[run.arm] = same(place / run.arm)
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A finished run of the arm `constant` that kept its checkpoint after 3 iterations."""
    place = tmp_path_factory.mktemp("source")
    sweep = write_sweep(place, {name: ARMS[name] for name in ("constant", "stride")})
    run = sweep.runs[0].config
    output = run.output.model_copy(update={"keep": (3,)})
    train.run(run.model_copy(update={"output": output}), place / "constant")
    (place / "constant" / "attempts").mkdir()
    _attempt(place / "constant", 1, 0, HERE)
    return place / "constant"


HERE = {
    "code": "abc",
    "python": "3.11.0",
    "versions": {"torch": "2"},
    "system": "Linux",
    "cpu": "EPYC",
    "threads": 1,
    "device": "cpu",
    "processes": 1,
    "sharded": False,
}


def _attempt(folder: Path, number: int, began_at: int, made_on: dict[str, Any] | None) -> None:
    record = {"number": number, "pid": 1, "started": 1.0, "began_at": began_at, "made_on": made_on}
    write_json(folder / "attempts" / f"{number}.json", record)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def stride(folder: Path) -> RunConfig:
    folder.mkdir(parents=True, exist_ok=True)
    sweep = write_sweep(folder, {name: ARMS[name] for name in ("constant", "stride")})
    return sweep.runs[1].config


# ---- The same bytes


def test_runs_from_a_trunk_end_with_the_bytes_of_runs_from_nothing(
    tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    sweep = write_sweep(tmp_path, ARMS)
    states, _ = launch(sweep, tmp_path / "runs")
    shared = {
        arm: (origin(s.folder) or {"iterations": 0})["iterations"] for arm, s in states.items()
    }
    assert shared == {
        "constant": 0,
        "stride": 3,
        "slow": 3,
        "frozen": 3,
        "decay": 11,
        "same": 12,
        "long": 12,
        "other": 0,
    }
    for arm, state in states.items():
        assert state.state == "finished"
        assert same(state.folder) == alone[arm], arm
        assert leftovers(state.folder) == []
        # An evaluation of the source's own end is none of the longer run's.
        assert [a.reason for a in state.attempts] == ["finished"]
        assert [a.began_at for a in state.attempts] == [shared[arm]]
        # What was kept for others is gone: two are left, as without.
        assert len(checkpoints_of(state.folder)) == 2 or shared[arm] == 12
        assert not (state.folder / KEPT).exists()
    assert origin(states["stride"].folder)["run"] == f"toy/{states['constant'].folder.name}"  # type: ignore[index]
    evals = (states["long"].folder / "eval.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in evals] == [0, 3, 6, 9, 12, 14]


def test_an_evaluation_of_a_runs_own_end_is_not_copied_into_a_longer_one(tmp_path: Path) -> None:
    arms: Arms = {"short": {"iterations": 5}, "long": {"iterations": 8}}
    sweep = write_sweep(tmp_path, arms)
    states, _ = launch(sweep, tmp_path / "runs")
    assert origin(states["long"].folder)["iterations"] == 5  # type: ignore[index]
    train.run(states["long"].run.config, tmp_path / "alone")
    assert same(states["long"].folder) == same(tmp_path / "alone")


def test_without_sharing_every_run_is_computed(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "same")})
    states, _ = launch(sweep, tmp_path / "runs", share=False)
    assert [s.attempts[0].began_at for s in states.values()] == [0, 0]
    assert all(origin(s.folder) is None for s in states.values())


# ---- What is finished elsewhere


def test_a_run_that_is_finished_in_another_sweep_is_copied(
    tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    runs = tmp_path / "runs"
    first = write_sweep(tmp_path, {"base": ARMS["constant"]}, "first")
    theirs, _ = launch(first, runs)
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "other")})
    states, said = launch(sweep, runs)
    assert any("copied from" in text and "/first/base-seed0-" in text for text in said)
    state = states["constant"]
    assert (state.state, state.attempts) == ("finished", ())
    assert same(state.folder) == alone["constant"]
    assert origin(state.folder)["run"] == f"first/{theirs['base'].folder.name}"  # type: ignore[index]
    assert origin(states["other"].folder) is None
    books = ledger(states.values(), runs / "toy")
    assert books.total.seconds == ledger([states["other"]], runs / "toy").total.seconds
    rows = collect(sweep, runs).runs.set_index("arm")
    assert rows.loc["constant", "shared"] == 12
    assert dict(rows["trained_by"]) == {"constant": "first", "other": "toy"}
    # The copy of a copy was trained where the first one was, whatever lies there by now.
    shutil.rmtree(theirs["base"].folder)
    again = write_sweep(tmp_path, {"again": {}}, "again")
    launch(again, runs)
    assert dict(collect(again, runs).runs["trained_by"]) == {0: "first"}
    # One that only began as another run was trained by its own study.
    write_json(state.folder / ORIGIN, {**origin(state.folder), "iterations": 3})  # type: ignore[dict-item]
    assert (trained_by(state.folder, 3), trained_by(state.folder, 12)) == ("first", "toy")
    # As an earlier version noted it.
    write_json(state.folder / ORIGIN, {"run": "zeroth/base", "iterations": 12, "seconds": 1.0})
    assert trained_by(state.folder, 12) == "zeroth"
    # Another measurement beside the training is another content of its lines.
    SETTINGS["health"] = {"drift": False}
    try:
        other = write_sweep(tmp_path, {"constant": {}}, "third")
    finally:
        del SETTINGS["health"]
    assert other.runs[0].hash == state.run.hash
    states, said = launch(other, runs)
    assert len(states["constant"].attempts) == 1


def test_a_copy_is_no_sign_of_life_of_the_attempt_that_was_killed_before(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, {"base": {}}, "first"), runs)
    sweep = write_sweep(tmp_path, {"constant": {}})
    folder = runs / "toy" / sweep.runs[0].folder_name
    # kill -9 leaves a record without an end.
    (folder / "attempts").mkdir(parents=True)
    write_json(folder / "attempts" / "1.json", {"number": 1, "pid": 2**22 + 1, "started": 1000.0})
    states, said = launch(sweep, runs)
    assert any("copied from" in text for text in said)
    (attempt,) = states["constant"].attempts
    assert (attempt.ended, attempt.reason) == (1000.0, "killed")
    assert ledger(states.values(), runs / "toy").total.seconds == 0


def test_a_damaged_finished_run_is_not_copied(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    theirs, _ = launch(write_sweep(tmp_path, {"base": {}}, "first"), runs)
    folder = theirs["base"].folder
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    states, said = launch(write_sweep(tmp_path, {"constant": {}}), runs)
    assert not any("copied from" in text for text in said)
    assert len(states["constant"].attempts) == 1
    assert states["constant"].state == "finished"


# ---- Adoption, killed and misled


_KILLED = 9


def _killed_at(number: int, action: Callable[[], None]) -> bool:
    """Do it in a process that ends, without clean-up, at its n-th operation on the disk. Whether
    it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == _KILLED
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os._exit(_KILLED)
            return operation(*args, **kwargs)

        return run

    for module, names in (
        (os, ("link", "fsync", "mkdir")),
        (shutil, ("rmtree", "copytree", "copyfile")),
        (Path, ("mkdir", "rename", "replace", "unlink")),
    ):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    try:
        action()
    finally:
        os._exit(0)


def _moments(action: Callable[[Path], None], place: Path) -> Iterator[Path]:
    """Folders in which it was killed at every moment, one after the other."""
    number = 1
    while _killed_at(number, lambda: action(place / str(number))):  # noqa: B023
        yield place / str(number)
        number += 1


def test_a_kill_at_any_moment_leaves_a_start_or_nothing(
    tmp_path: Path, source: Path, alone: dict[str, dict[str, Any]]
) -> None:
    config = stride(tmp_path)

    def take(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        adopt(folder, config, source, 3, HERE)

    starts = 0
    for number, folder in enumerate(_moments(take, tmp_path)):
        ready = checkpoints_of(folder)
        starts += bool(ready)
        if not ready and number % 2:
            take(folder)
        assert train.run(config, folder) == "finished"
        assert same(folder) == alone["stride"], folder
    assert number > 15
    assert starts >= 1


def test_a_kill_while_a_finished_run_is_copied_loses_nothing(
    tmp_path: Path, source: Path, alone: dict[str, dict[str, Any]]
) -> None:
    config = write_sweep(tmp_path, {"constant": {}}).runs[0].config

    def take(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        adoption.adopt_finished(folder, config, source)

    for number, folder in enumerate(_moments(take, tmp_path)):
        if (folder / "result.json").exists():
            assert same(folder) == alone["constant"]
        if number % 2:
            take(folder)
        assert train.run(config, folder) == "finished"
        assert same(folder) == alone["constant"], folder
    assert number > 15


def _flip(folder: Path) -> None:
    flip(folder / "checkpoints" / "000003")


def _cut(folder: Path) -> None:
    (folder / "checkpoints" / "000003" / "manifest.json").write_text("{")


def _lose(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints" / "000003")


def _lose_evaluation(folder: Path) -> None:
    (folder / "eval.jsonl").write_text("")


def _moved_between(folder: Path) -> None:
    _attempt(folder, 1, 0, HERE | {"cpu": "Xeon"})
    _attempt(folder, 2, 2, HERE)


def _no_record(folder: Path) -> None:
    shutil.rmtree(folder / "attempts")


def _old_record(folder: Path) -> None:
    _attempt(folder, 1, 0, None)


def _only_the_rest(folder: Path) -> None:
    _attempt(folder, 1, 1, HERE)


def _two_processes(folder: Path) -> None:
    place = folder / "checkpoints" / "000003" / "manifest.json"
    said = json.loads(place.read_text())
    said["made_on"]["processes"] = 2
    place.write_text(json.dumps(said))


def _names(name: str) -> Callable[[Path], None]:
    """A manifest that names this file, with its true digest."""

    def damage(folder: Path) -> None:
        place = folder / "checkpoints" / "000003"
        outside = folder.parent / "precious"
        outside.write_text("precious")
        said = json.loads((place / "manifest.json").read_text())
        said["files"][name.format(outside)] = manifest.digest_of(outside)
        (place / "manifest.json").write_text(json.dumps(said))

    return damage


def _leads_out(name: str) -> Callable[[Path], None]:
    """A file of the run is a link to one outside of it with the same bytes."""

    def damage(folder: Path) -> None:
        place = next(folder.glob(name))
        outside = folder.parent / "precious"
        place.rename(outside)
        place.symlink_to(outside)

    return damage


def _other_code(folder: Path) -> None:
    file = folder / "config.yaml"
    header, _, rest = file.read_text().partition("\n")
    file.write_text(header[:-8] + "00000000\n" + rest)


def _other_settings(folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("drift: true", "drift: false"))


@pytest.mark.parametrize(
    ("damage", "made_on", "why"),
    [
        (_flip, {}, "weights.safetensors is not what was written"),
        (_cut, {}, "000003"),
        (_lose, {}, "000003"),
        (_lose_evaluation, {}, "eval.jsonl lacks lines"),
        (_moved_between, {}, "another cpu"),
        (_no_record, {}, "does not say on what"),
        (_old_record, {}, "does not say on what"),
        (_only_the_rest, {}, "does not say on what"),
        (_two_processes, {}, "another number of processes"),
        (_names("../../../precious"), {}, "no plain file name"),
        (_names("../../config.yaml"), {}, "no plain file name"),
        (_names("{}"), {}, "no plain file name"),
        (_names(".."), {}, "no plain file name"),
        (_names(""), {}, "no plain file name"),
        (_names("sub/file"), {}, "no plain file name"),
        (_leads_out("checkpoints/000003/average.safetensors"), {}, "link that leads out"),
        (_leads_out("checkpoints/000003/manifest.json"), {}, "link that leads out"),
        (_leads_out("samples/000000/0.png"), {}, "link that leads out"),
        (_other_code, {}, "its code, weights or prompts are not those of now"),
        (_other_settings, {}, "is another run before it has done 3 iterations"),
        (None, {"processes": 2}, "another number of processes"),
        (None, {"sharded": True}, "another sharded"),
        (None, {"code": "def"}, "another code"),
        (None, {"cpu": "Xeon"}, "another cpu"),
        (None, {"threads": 2}, "another threads"),
        (None, {"device": "cuda"}, "another device"),
        (None, {"versions": {"torch": "3"}}, "another versions"),
    ],
)
def test_what_is_not_the_same_is_refused(
    damage: Callable[[Path], None] | None,
    made_on: dict[str, Any],
    why: str,
    tmp_path: Path,
    source: Path,
) -> None:
    config = stride(tmp_path)
    theirs = tmp_path / "theirs"
    shutil.copytree(source, theirs)
    if damage is not None:
        damage(theirs)
    (tmp_path / "run").mkdir()
    with pytest.raises(UnfitError, match=why):
        adopt(tmp_path / "run", config, theirs, 3, HERE | made_on)
    assert checkpoints_of(tmp_path / "run") == []
    assert origin(tmp_path / "run") is None
    if (precious := tmp_path / "precious").exists():
        assert not precious.is_symlink()
    assert not list((tmp_path / "run").rglob("precious"))


def test_a_part_that_another_machine_made_later_does_not_count(
    tmp_path: Path, source: Path
) -> None:
    config = stride(tmp_path)
    theirs = tmp_path / "theirs"
    shutil.copytree(source, theirs)
    _attempt(theirs, 2, 3, HERE | {"cpu": "Xeon"})
    (tmp_path / "run").mkdir()
    adopt(tmp_path / "run", config, theirs, 3, HERE)
    assert checkpoints_of(tmp_path / "run") == [3]


def test_uncommitted_code_is_told_apart_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("harness", "mixgrpo"):
        (tmp_path / name).mkdir()
    place = tmp_path / "mixgrpo" / "update.py"
    own = tmp_path / "harness" / "runs" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(own))
    digest = environment.code.__wrapped__
    found = []
    for text in ("a", "b", "a"):
        place.write_text(text)
        found.append(digest())
    assert found[0] == found[2] != found[1]
    (tmp_path / "harness" / "status.py").write_text("changes no result")
    assert digest() == found[2]
    place.rename(tmp_path / "mixgrpo" / "other.py")
    assert digest() != found[2]


def test_what_a_copied_run_was_made_on_is_known_to_those_that_start_from_it(
    tmp_path: Path, source: Path
) -> None:
    sweep = write_sweep(tmp_path, {"constant": {}, "long": {"iterations": 14}})
    short, long = (run.config for run in sweep.runs)
    for name in ("copy", "run", "other"):
        (tmp_path / name).mkdir()
    adoption.adopt_finished(tmp_path / "copy", short, source)
    adopt(tmp_path / "run", long, tmp_path / "copy", 12, HERE)
    assert checkpoints_of(tmp_path / "run") == [12]
    with pytest.raises(UnfitError, match="another cpu"):
        adopt(tmp_path / "other", long, tmp_path / "run", 12, HERE | {"cpu": "Xeon"})


# ---- What is left of a copy


def test_an_attempt_that_was_killed_after_the_copy_did_not_compute_it(
    tmp_path: Path, source: Path
) -> None:
    config = stride(tmp_path)
    folder = tmp_path / "run"
    (folder / "attempts").mkdir(parents=True)
    adopt(folder, config, source, 3, HERE)
    _attempt(folder, 1, 0, HERE)  # as its job leaves it that was killed before it noted it
    assert make_job(folder, config).run(lambda: True) == "stopped"
    assert [(a.reason, a.began_at) for a in read_attempts(folder)] == [
        ("killed", 3),
        ("stopped", 3),
    ]


def test_a_run_whose_copy_is_lost_computes_all_and_says_so(
    tmp_path: Path, source: Path, alone: dict[str, dict[str, Any]]
) -> None:
    config = stride(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    adopt(folder, config, source, 3, HERE)
    place = folder / "checkpoints" / "000003"
    (place / "manifest.json").unlink()  # not the file that the source has too
    with pytest.warns(UserWarning, match="corrupt checkpoint"):
        train.run(config, folder)
    assert origin(folder) is None
    assert same(folder) == alone["stride"]


def test_a_copy_of_which_a_part_is_lost_says_how_much_is_left(tmp_path: Path, source: Path) -> None:
    config = write_sweep(tmp_path, {"constant": {"output.keep": [3]}}).runs[0].config
    folder = tmp_path / "run"
    folder.mkdir()
    adoption.adopt_finished(folder, config, source)
    assert checkpoints_of(folder) == [3, 12]
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "000012")
    train.run(config, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["seconds_total"] for line in lines[:3])
    copied = origin(folder)
    assert copied is not None
    assert (copied["iterations"], copied["seconds"]) == (3, pytest.approx(seconds))


@pytest.mark.parametrize(
    ("asked", "lost", "why"),
    [
        ({"output.samples": 3}, None, "output.samples"),
        ({"output.keep": [3, 4]}, None, "no checkpoint 4"),
        ({}, "weights", "output.export"),
        ({"output.export": False}, "weights", None),
        ({"health.drift": False}, None, "health"),
    ],
)
def test_a_copy_has_all_that_is_asked_for(
    asked: dict[str, Any], lost: str | None, why: str | None, tmp_path: Path, source: Path
) -> None:
    run = write_sweep(tmp_path, {"constant": asked}).runs[0]
    theirs, folder = tmp_path / "theirs", tmp_path / "run"
    shutil.copytree(source, theirs)
    folder.mkdir()
    if lost is not None:
        shutil.rmtree(theirs / lost)
    assert adoption.fits_whole(theirs, run.config, run.hash) == (why is None)
    if why is None:
        adoption.adopt_finished(folder, run.config, theirs)
        assert (folder / "result.json").exists()
        return
    with pytest.raises(UnfitError, match=why):
        adoption.adopt_finished(folder, run.config, theirs)
    assert list(folder.iterdir()) == []


def _finished_twice(tmp_path: Path, source: Path) -> tuple[Sharing, list[RunState]]:
    """Two runs of one sweep that are finished under another name."""
    runs = tmp_path / "runs"
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "same")})
    for run in sweep.runs:
        folder = runs / "first" / f"base-{run.hash}"
        shutil.copytree(source, folder)
        result = json.loads((folder / "result.json").read_text())
        write_json(folder / "result.json", sealed(result | {"hash": run.hash}))
    (runs / sweep.name).mkdir()
    return Sharing(sweep, runs), look_at_all(sweep, runs)


def test_a_source_that_vanishes_while_it_is_copied_costs_that_copy_alone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, states = _finished_twice(tmp_path, source)
    said: list[str] = []

    def gone(place: Path, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(place))

    monkeypatch.setattr(adoption, "_link", gone)  # after its lines were copied
    sharing.copy_finished(states, said.append)
    assert [text.split(":")[:2] for text in said] == [
        ["constant-seed0", " not copied"],
        ["same-seed0", " not copied"],
    ]
    assert all(origin(state.folder) is None for state in states)
    monkeypatch.undo()

    def full(place: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        sharing.copy_finished(states, said.append)
    monkeypatch.undo()
    assert train.run(states[0].run.config, states[0].folder) == "finished"


def test_between_two_copies_a_wish_to_stop_is_heard(tmp_path: Path, source: Path) -> None:
    sharing, states = _finished_twice(tmp_path, source)
    said: list[str] = []
    sharing.copy_finished(states, said.append, lambda: bool(said))
    assert len(said) == 1
    assert [s.state for s in look_at_all(sharing.whole, sharing.runs_dir)] == [
        "finished",
        "waiting",
    ]


def test_a_damaged_source_costs_a_run_from_nothing_and_no_more(
    tmp_path: Path, alone: dict[str, dict[str, Any]]
) -> None:
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "stride")})
    runs = tmp_path / "runs"
    launch(sweep, runs, share=False)
    folders = {s.run.arm: s.folder for s in look_at_all(sweep, runs)}
    # As a launcher leaves them that ended before the second run: with the checkpoint it kept.
    shutil.rmtree(folders["stride"])
    shutil.copytree(
        folders["constant"] / "checkpoints" / "000012",
        folders["constant"] / "checkpoints" / "000003",
    )
    states, _ = launch(sweep, runs)
    assert [a.began_at for a in states["stride"].attempts] == [0]
    assert origin(states["stride"].folder) is None
    assert same(states["stride"].folder) == alone["stride"]


def test_checkpoints_are_links_where_the_disk_has_them(tmp_path: Path, source: Path) -> None:
    run = tmp_path / "run"
    config = stride(tmp_path)
    run.mkdir()
    adopt(run, config, source, 3, HERE)
    for file in (source / "checkpoints" / "000003").iterdir():
        assert file.samefile(run / "checkpoints" / "000003" / file.name)
    before = files_of(source)
    train.run(config, run)  # goes on, and leaves the other one's alone
    assert files_of(source) == before
    whole = tmp_path / "whole"
    whole.mkdir()
    own = write_sweep(tmp_path, {"constant": {}}, "own").runs[0].config
    adoption.adopt_finished(whole, own, source)
    for name in ("result.json", "checkpoints/000012"):
        gone = whole / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    train.run(own, whole)  # all is made again, the exported weights too
    assert files_of(source) == before


# ---- Part of a sweep


def test_a_source_outside_of_only_is_used_where_it_is_and_not_waited_for(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "stride", "slow")})
    runs = tmp_path / "runs"
    states, _ = launch(sweep, runs, only(sweep, ["stride", "slow"]))
    assert [s.state for s in states.values()] == ["waiting", "finished", "finished"]
    began = {arm: [a.began_at for a in state.attempts] for arm, state in states.items()}
    assert began == {"constant": [], "stride": [0], "slow": [3]}
    # What one of them kept for the other is there for the first one too, until it has run.
    saved = foresee(sweep, look_at_all(sweep, runs), runs)
    trunk = Trunk(states["stride"].folder.name, 3, ready=True)
    assert saved.trunks == {states["constant"].folder.name: trunk}
    assert checkpoints_of(states["stride"].folder) == [3, 10, 12]
    states, _ = launch(sweep, runs)
    assert [a.began_at for a in states["constant"].attempts] == [3]
    assert checkpoints_of(states["stride"].folder) == [10, 12]


def test_the_hours_of_a_shared_part_are_counted_once(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {name: ARMS[name] for name in ("constant", "same", "stride")})
    runs = tmp_path / "runs"
    states, _ = launch(sweep, runs)
    seconds = {}
    for arm, state in states.items():
        lines = (state.folder / "metrics.jsonl").read_text().splitlines()
        seconds[arm] = [json.loads(line)["seconds_total"] for line in lines]
    iterations = sum(seconds["constant"]) + sum(seconds["stride"][3:])
    useful = sum(ledger([s], runs / "toy").useful.seconds for s in states.values())
    evaluations = sum(
        json.loads(line)["seconds_total"]
        for state in states.values()
        for line in (state.folder / "eval.jsonl").read_text().splitlines()
    )
    assert iterations <= useful <= iterations + evaluations
    assert ledger([states["same"]], runs / "toy").useful.seconds < 0.5 * sum(seconds["same"])
    rows = collect(sweep, runs).runs.set_index("arm")
    assert rows["shared"].to_dict() == {"constant": 0, "same": 12, "stride": 3}
    assert rows.loc["stride", "shared_seconds"] == pytest.approx(sum(seconds["stride"][:3]))
