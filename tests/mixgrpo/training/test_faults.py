"""What a disk or another process can do to a run's folder, while it runs or between two attempts.

Whatever it was, running it again must end with the bytes of an undisturbed run: no line lost, none
twice.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from mixgrpo import train
from mixgrpo.errors import RunError
from mixgrpo.files import checkpoint, jsonlines, manifest
from tests.mixgrpo import toy
from tests.mixgrpo.outcomes import SMALL, flip, iterations, leftovers, outcome, stopped_at

pytestmark = pytest.mark.usefixtures("toy_site")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """The folder of SMALL, undisturbed."""
    folder = tmp_path_factory.mktemp("small") / "run"
    assert train.run(SMALL, folder) == "finished"
    return folder


@pytest.fixture(scope="module")
def small(undisturbed: Path) -> dict[str, Any]:
    return outcome(undisturbed)


# ---- Files that were spoiled


def _truncate(place: Path) -> None:
    file = place / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    "spoil",
    [_truncate, flip, lambda p: (p / "manifest.json").unlink()],
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
    for place in manifest.checkpoints(tmp_path / "checkpoints"):
        flip(place)
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
    "cut",
    [
        *(b"half", b'{"iteration": 2}', b'{"iteration": 9, "x": [1', b"\x00\x00", b"\xff\xfe"),
        *(b"\x00\x00\n", b'{"itera\n\n', b"[]\n5\n", b'{"iteration": "2"}\n', b"\xff\xfe\n"),
    ],
)
def test_a_last_line_cut_short_is_dropped(
    tmp_path: Path, small: dict[str, Any], name: str, cut: bytes
) -> None:
    stopped_at(tmp_path, 2)
    before = jsonlines.read_lines(tmp_path / name)
    with (tmp_path / name).open("ab") as stream:
        stream.write(cut)
    assert jsonlines.read_lines(tmp_path / name) == before
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


# ---- Lines that are lost, or there twice


def _half(texts: list[str], number: int) -> str:
    whole = texts[number]
    return "".join([*texts[:number], whole[: len(whole) // 2] + "\n", *texts[number + 1 :]])


def _cut(texts: list[str], number: int) -> str:
    return "".join(texts[:number]) + texts[number][:20]


def _drop(texts: list[str], number: int) -> str:
    return "".join(texts[:number] + texts[number + 1 :])


def _glue(texts: list[str], number: int) -> str:
    """What another process left of a line, and then this one."""
    return "".join([*texts[:number], '{"iteration": 9, "lo', *texts[number:]])


def _zeros(texts: list[str], number: int) -> str:
    """A page of the file that the crash of a machine left empty."""
    return "".join(
        [*texts[:number], "\x00" * (len(texts[number]) - 1) + "\n", *texts[number + 1 :]]
    )


@pytest.mark.parametrize("lose", [_half, _cut, _drop, _glue, _zeros])
@pytest.mark.parametrize(
    ("name", "number", "left"),
    [("metrics.jsonl", 2, 2), ("metrics.jsonl", 0, 0), ("eval.jsonl", 1, 2), ("eval.jsonl", 0, 0)],
)
def test_lines_lost_before_the_checkpoint_are_made_again(
    tmp_path: Path,
    small: dict[str, Any],
    lose: Callable[[list[str], int], str],
    name: str,
    number: int,
    left: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There are checkpoints of 2 and of 3 iterations; the lines of `left` are known to be whole."""
    stopped_at(tmp_path, 3)
    file = tmp_path / name
    file.write_text(lose(file.read_text().splitlines(keepends=True), number))
    caplog.set_level("INFO")
    with pytest.warns(UserWarning, match=rf"of the first {left} iterations only, not of 3"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert ("goes on after 2 iterations" in caplog.text) == (left == 2)
    assert "goes on after 3 iterations" not in caplog.text
    assert outcome(tmp_path) == small


def _stale(undisturbed: Path, name: str, number: int) -> str:
    """The line of a process that slept for an hour in the midst of it."""
    line = json.loads((undisturbed / name).read_text().splitlines()[number])
    return json.dumps(line | {"seconds_total": 3600.0}) + "\n"


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("stops", [False, True])
def test_a_line_that_a_sleeping_process_added_counts_once(
    tmp_path: Path,
    small: dict[str, Any],
    undisturbed: Path,
    name: str,
    number: int,
    at: int,
    stops: bool,
) -> None:
    """Another took its run over; it wakes, and writes what it had computed. Its line comes before
    the run has got there, or after; the run goes on to its end, or stops and is resumed."""
    awake = False

    def wake() -> bool:
        nonlocal awake
        if awake or iterations(tmp_path) < at:
            return False
        awake = True
        with (tmp_path / name).open("a") as stream:
            stream.write(_stale(undisturbed, name, number))
        if name == "eval.jsonl":  # its pictures and scores come before the line
            for folder in ("samples", "scores"):
                shutil.copytree(undisturbed / folder, tmp_path / folder, dirs_exist_ok=True)
        return stops

    assert train.run(SMALL, tmp_path, wake) == ("stopped" if stops else "finished")
    if stops:
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small
    # The run's own line is kept where it was there already: the hour is not the run's.
    lines = jsonlines.read_lines(tmp_path / name)
    there = number < at if name == "metrics.jsonl" else 2 * number < at
    if there:
        assert max(line["seconds_total"] for line in lines) < 3600


def test_a_line_added_after_the_end_counts_for_no_reader(tmp_path: Path, undisturbed: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        file = tmp_path / name
        content = (undisturbed / name).read_text()
        file.write_text(content + _stale(undisturbed, name, 1))
        assert jsonlines.read_lines(file) == jsonlines.read_lines(undisturbed / name)
        file.write_text(_stale(undisturbed, name, 2) + content)
        numbers = [line["iteration"] for line in jsonlines.read_lines(file)]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
def test_a_line_lost_while_the_run_goes_on_is_named_and_made_again(
    tmp_path: Path, small: dict[str, Any], name: str
) -> None:
    spoilt = False

    def spoil() -> bool:
        nonlocal spoilt
        if not spoilt and iterations(tmp_path) == 3:
            spoilt = True
            file = tmp_path / name
            file.write_text(_half(file.read_text().splitlines(keepends=True), 1))
        return False

    with pytest.raises(RunError, match=r"eval\.jsonl were lost .* same command again"):
        train.run(SMALL, tmp_path, spoil)
    assert not (tmp_path / "result.json").exists()
    with pytest.warns(UserWarning, match="iterations only, not of 4"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


def test_two_broken_lines_are_not_a_whole_one_together(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"iteration": 0}\n{"iteration": 1, "a": 1\n"b": 2}\n{"iteration": 2}\n')
    assert [line["iteration"] for line in jsonlines.whole_lines(file)] == [0, 2]
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: not valid JSON"):
        jsonlines.read_lines(file)


# ---- Results that are no results


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-3],
        lambda whole: b"\x00" * len(whole),
        lambda whole: b"\xff\xfe" + whole,
        lambda whole: b"[]",
        lambda whole: b"null",
        lambda whole: json.dumps({**json.loads(whole), "hash": "00000000"}).encode(),
    ],
    ids=["empty", "half", "an end too few", "zeros", "bytes", "list", "null", "another"],
)
def test_a_spoiled_result_is_written_again(
    tmp_path: Path, small: dict[str, Any], spoil: Callable[[bytes], bytes]
) -> None:
    train.run(SMALL, tmp_path)
    file = tmp_path / "result.json"
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    with pytest.warns(UserWarning, match=r"json: .* is set aside as result\.json\.damaged-1"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert file.read_bytes() == whole  # also the seconds: no iteration was made again
    assert outcome(tmp_path) == small


@pytest.mark.filterwarnings("ignore:.*iterations only")
def test_a_spoiled_result_counts_as_none_until_it_is_written_again(tmp_path: Path) -> None:
    """A run that is stopped at once has none, for whoever looks at the folder."""
    train.run(SMALL, tmp_path)
    (tmp_path / "result.json").write_text('{"sch')
    (tmp_path / "eval.jsonl").unlink()
    with pytest.warns(UserWarning, match="is not whole JSON; the result is set aside"):
        assert train.run(SMALL, tmp_path, lambda: True) == "stopped"
    assert not (tmp_path / "result.json").exists()


def test_a_spoiled_list_of_the_pictures_is_written_again(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    stopped_at(tmp_path, 2)
    (tmp_path / "samples" / "prompts.json").write_text('["prom')
    assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == small


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


@pytest.mark.parametrize(
    ("writing", "every", "evaluates"),
    [("checkpoint.py", 1, 40), ("samples.py", 100, 2), ("jsonlines.py", 100, 40)],
)
def test_a_full_disk_stops_and_room_lets_it_finish(
    tmp_path: Path, writing: str, every: int, evaluates: int
) -> None:
    """Whatever it is that finds no room first."""
    config = toy.config(
        iterations=40, output={"checkpoint_every": every}, evaluation={"every": evaluates}
    )
    undisturbed = tmp_path / "undisturbed"
    train.run(config, undisturbed)
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "run"
        polls = 0

        def fill_once() -> bool:
            nonlocal polls
            polls += 1
            if polls == 5:  # before the second iteration
                fill(disk)
            return False

        for attempt in range(2):  # also a second try without room
            with pytest.raises(RunError, match=r"No space left.*same command again") as error:
                train.run(config, folder, fill_once)
            if attempt == 0:
                assert error.value.__cause__ is not None
                frames = traceback.extract_tb(error.value.__cause__.__traceback__)
                assert writing in {n for f in frames for n in (Path(f.filename).name, f.name)}
                # A line that finds no room is there in part: up to the end of the disk's page.
                cut = not (folder / "metrics.jsonl").read_bytes().endswith(b"\n")
                assert cut == (writing == "jsonlines.py")
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


def test_a_disk_that_turns_read_only_while_a_run_is_on_it(
    tmp_path: Path, small: dict[str, Any]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "run"
        polls = 0

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

        def turn() -> bool:
            nonlocal polls
            polls += 1
            if polls == 3:
                remount("ro")
            return False

        for _ in range(2):
            with pytest.raises(RunError, match=r"Read-only file system.*same command again"):
                train.run(SMALL, folder, turn)
        remount("rw")
        assert train.run(SMALL, folder) == "finished"
        assert outcome(folder) == small
        remount("ro")
        assert train.run(SMALL, folder) == "finished"
        (folder / "result.json").read_bytes()
