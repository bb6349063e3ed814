"""Where a file is written: regular files are replaced whole, everything else is written through."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_bytes, write_text
from mixgrpo.settings.paths import check_file, check_folder, check_weights_file
from tests.mixgrpo import toy

IS_ROOT = os.geteuid() == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("kept", [0o600, 0o644, 0o755, 0o666])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(kept)
    before = file.stat().st_ino
    write_text(file, "new")
    assert (file.read_text(), mode(file)) == ("new", kept)
    assert file.stat().st_ino != before, "replaced as a whole, not written over"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")
def test_a_replaced_file_keeps_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    os.chown(file, 1234, 4321)
    write_text(file, "new")
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 4321)


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    real = tmp_path / "there" / "real"
    real.parent.mkdir()
    (tmp_path / "link").symlink_to("there/real")
    (tmp_path / "chain").symlink_to(tmp_path / "link")
    for text in ("made", "replaced"):  # the target is missing at first
        write_text(tmp_path / "chain", text)
        assert real.read_text() == text
        assert (tmp_path / "chain").is_symlink()
        assert (tmp_path / "link").is_symlink()
    assert list(real.parent.iterdir()) == [real]


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as error:
        write_text(tmp_path / "a", "text")
    assert error.value.filename == str(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"--out .*symbolic links"):
        check_file("--out", tmp_path / "a")


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_one(tmp_path: Path, linked: bool) -> None:
    """On one of the test's own, where it may be made: a fault would spoil the machine's."""
    device = tmp_path / "null"
    if IS_ROOT:
        try:
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("no devices can be made here")
    else:
        device = Path(os.devnull)
    place = device
    if linked:
        place = tmp_path / "link"
        place.symlink_to(device)
    check_file("--out", place)
    write_bytes(place, b"x" * 848)
    assert stat.S_ISCHR(device.stat().st_mode)
    with pytest.raises(ConfigError, match="regular file"):
        check_weights_file("--out", place)


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    content = os.urandom(200_000)  # more than a pipe holds
    check_file("--out", pipe)
    write_bytes(pipe, content)
    reader.join(30)
    assert read == [content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


WRITE = """
import sys
from pathlib import Path
from mixgrpo.files.atomic import write_text
from mixgrpo.settings.paths import check_file
print("before")
check_file("--out", Path(sys.argv[1]))
write_text(Path(sys.argv[1]), "content\\n")
print("after")
"""


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("shell", ['"$@" | cat', '"$@" >> file; cat file', '"$@" > file; cat file'])
def test_open_descriptors_are_written_to_in_order(tmp_path: Path, place: str, shell: str) -> None:
    """A file to which a shell appends keeps what it had, and what is printed later is in it."""
    if place == "link":
        (tmp_path / "link").symlink_to("/dev/stdout")
    (tmp_path / "file").write_text("earlier\n")
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", WRITE, place],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(toy.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    earlier = ["earlier"] if ">>" in shell else []
    assert done.stdout.split() == [*earlier, "before", "content", "after"]


def test_what_fails_names_the_place_and_leaves_the_old_content(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as folder:
        write_text(tmp_path, "text")
    assert folder.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as missing:
        write_text(tmp_path / "no" / "file", "text")
    assert missing.value.filename == str(tmp_path / "no" / "file")
    with pytest.raises(OSError, match="No space left") as full:
        write_text(Path("/dev/full"), "text")
    assert full.value.filename == "/dev/full"
    file = tmp_path / "closed" / "file"
    file.parent.mkdir()
    file.write_text("old")
    if not IS_ROOT:
        file.parent.chmod(0o500)
        with pytest.raises(PermissionError) as closed:
            write_text(file, "new")
        file.parent.chmod(0o700)
        assert closed.value.filename == str(file)
        assert file.read_text() == "old"


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)  # 254 of 255 bytes
    write_text(file, "text")
    assert file.read_text() == "text"


def test_places_are_checked_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_file("--out", tmp_path / "file")
    check_file("--out", tmp_path / "dangling")
    check_file("--out", tmp_path / "new" / "file", makes_folder=True)
    check_folder("--out", tmp_path / "new" / "folder")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        check_file("--out", tmp_path)
    with pytest.raises(ConfigError, match="new is not a folder"):
        check_file("--out", tmp_path / "new" / "file")
    for path in ("file", "file/in", "dangling", "dangling/in"):
        with pytest.raises(ConfigError, match=r"(file|dangling) is not a folder"):
            check_folder("--out", tmp_path / path)
    with pytest.raises(ConfigError, match="File name too long"):
        check_file("--out", tmp_path / ("x" * 300))
    # Nothing is closed to root but a file system that is read-only, which `access` tells, too.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_file("--out", tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written to"):
        check_folder("--out", tmp_path / "new")
