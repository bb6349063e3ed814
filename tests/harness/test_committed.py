"""The committed reports are what the committed measurements give by `harness.report --all`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MEASURED = ("*.parquet", "made.json", "samples", "trials.*", "confirm.yaml")
_INSIDE = re.compile(r"(?<=base64,)[^\"]*")


@pytest.mark.long
def test_the_measurements_alone_give_every_committed_report(tmp_path: Path) -> None:
    committed, made = ROOT / "reports", tmp_path / "reports"
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    for folder in (path for path in committed.iterdir() if path.is_dir()):
        for part in (part for pattern in MEASURED for part in folder.glob(pattern)):
            place = made / part.relative_to(committed)
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if part.is_dir() else shutil.copyfile)(part, place)
    command = [sys.executable, "-m", "harness.report", "--all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert _files(made) == _files(committed)
    for name in _files(committed):
        one, other = committed / name, made / name
        if one.suffix == ".png":  # a later matplotlib may draw a line otherwise
            with Image.open(one) as a, Image.open(other) as b:
                assert a.size == b.size, name
        elif one.suffix == ".html":
            assert _INSIDE.sub("", one.read_text()) == _INSIDE.sub("", other.read_text()), name
        elif one.suffix != ".pdf":
            assert one.read_bytes() == other.read_bytes(), name


def _files(folder: Path) -> set[str]:
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return {str(file) for file in files if ".cache" not in file.parts}
