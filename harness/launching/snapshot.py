"""A copy of the code at submission, so that later changes do not reach queued runs.

runs/<sweep>/code/<commit>-<digest>/     the tracked files, as they were, changes included
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.runs import environment
from mixgrpo.errors import ConfigError

CODE = "code"


@dataclass(frozen=True)
class Snapshot:
    """A copy of the files that git tracks."""

    folder: Path

    def variables(self) -> dict[str, str]:
        """The variables with which Python imports the copy first."""
        paths = [str(self.folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        # Without it `python -m` would look into the working directory first.
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}


def locate(sweep_folder: Path) -> Snapshot:
    """The copy of the code as it is now, which need not exist yet.

    ConfigError where the code is not in a git checkout.
    """
    root, digest = _root(), hashlib.sha256()
    for name in _tracked(root):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    commit = (environment.commit()[0] or "none")[:10]
    copy = (sweep_folder / CODE / f"{commit}-{digest.hexdigest()[:10]}").resolve()
    for folder in (copy, Path.cwd()):
        if os.pathsep in str(folder):
            raise ConfigError(
                f"--snapshot: {folder} contains a {os.pathsep}, at which PYTHONPATH would be "
                "split; rename that folder, or leave --snapshot out"
            )
    return Snapshot(copy)


def take(sweep_folder: Path) -> Snapshot:
    """Copy the tracked files of this checkout, unless the same copy exists.

    ConfigError where the code is not in a git checkout.
    """
    snapshot, root = locate(sweep_folder), _root()
    if snapshot.folder.exists():
        return snapshot
    snapshot.folder.parent.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", dir=snapshot.folder.parent))
    try:
        partial.chmod(0o755)
        for name in _tracked(root):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, partial / name)
        commit, dirty = environment.commit()
        version = json.dumps({"commit": commit, "dirty": dirty})
        (partial / environment.SNAPSHOT).write_text(version)
        partial.rename(snapshot.folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if not snapshot.folder.exists():  # another launcher made it meanwhile
            raise
    return snapshot


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _tracked(root: Path) -> list[str]:
    names = _git(root, "ls-files", "-z").split("\0")[:-1]
    return [name for name in names if (root / name).is_file()]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"--snapshot: {root} is not a git checkout, so the files of the code are unknown; "
            "leave it out, or run from a clone"
        ) from None
    return done.stdout
