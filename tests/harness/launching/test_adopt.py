"""Taking over what another run has computed: to the byte, or not at all, killed at any moment."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.launching import adopt as adoption
from harness.launching.adopt import UnfitError, adopt, adopt_accepted
from harness.launching.job import make_job
from harness.runs import environment, store
from harness.runs.codechange import AcceptedCode
from harness.runs.folder import checkpoints_of, origin, read_attempts
from mixgrpo import train
from mixgrpo.files import manifest
from mixgrpo.files.atomic import write_json
from mixgrpo.settings.config import RunConfig
from tests.harness.launching.toys import launch, same, write_sweep
from tests.mixgrpo.outcomes import flip

pytestmark = pytest.mark.usefixtures("toy_site")

ARMS: dict[str, dict[str, Any]] = {"constant": {}, "stride": {"window.stride": 2}}
ACCEPTED = AcceptedCode(run="first/base", hash="0" * 8, code={}, changed="the code of reward red")


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


# ---- The first iterations of a run of another length


def test_an_evaluation_of_a_runs_own_end_is_not_copied_into_a_longer_one(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    launch(write_sweep(tmp_path, {"a": {"iterations": 5}}), runs)
    states, _ = launch(write_sweep(tmp_path, {"a": {"iterations": 8}}), runs)
    assert origin(states["a"].folder)["iterations"] == 5  # type: ignore[index]
    train.run(states["a"].run.config, tmp_path / "alone")
    assert same(states["a"].folder) == same(tmp_path / "alone")


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


def test_a_kill_while_a_finished_run_is_copied_leaves_all_of_it_or_nothing(
    tmp_path: Path, source: Path, alone: dict[str, dict[str, Any]]
) -> None:
    config = write_sweep(tmp_path, {"constant": {}}).runs[0].config

    def take(folder: Path) -> None:
        adopt_accepted(folder, config, source, ACCEPTED)

    for number, folder in enumerate(_moments(take, tmp_path)):  # noqa: B007
        if not folder.exists():
            take(folder)
        found = same(folder)
        result = json.loads(found["result"])
        record = (folder / "accepted.json").read_bytes()
        assert result.pop("accepted") == hashlib.sha256(record).hexdigest()
        assert found | {"result": json.dumps(result)} == alone["constant"], folder
        assert train.run(config, folder) == "finished"
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
    adopt_accepted(folder, config, source, ACCEPTED)
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
    if lost is not None:
        shutil.rmtree(theirs / lost)
    assert (store.what_lacks(theirs, run.config) is None) == (why is None)
    if why is None:
        adopt_accepted(folder, run.config, theirs, ACCEPTED)
        assert (folder / "result.json").exists()
        return
    with pytest.raises(UnfitError, match=why):
        adopt_accepted(folder, run.config, theirs, ACCEPTED)
    assert not folder.exists()


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
    own = write_sweep(tmp_path, {"constant": {}}, "own").runs[0].config
    adopt_accepted(whole, own, source, ACCEPTED)
    for name in ("result.json", "checkpoints/000012"):
        gone = whole / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    train.run(own, whole)  # all is made again, the exported weights too
    assert files_of(source) == before


def test_a_disk_that_is_full_is_no_reason_to_compute_all_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_sweep(tmp_path, {"constant": {}}).runs[0].config

    def full(place: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left", str(target))

    def gone(place: Path, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", str(place))

    for failure, error in ((full, OSError), (gone, UnfitError)):
        monkeypatch.setattr(adoption, "_link", failure)
        with pytest.raises(error, match=r"No s"):
            adopt_accepted(tmp_path / "run", config, source, ACCEPTED)
        assert not list(tmp_path.glob("run*"))
