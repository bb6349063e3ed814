"""Trackers in processes of their own, their files read back by other means than wrote them."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from mixgrpo.training.trackers import SweepRun, Trackers, open_trackers, run_id, sweep_run
from tests.mixgrpo.toy import ROOT

SECRET = "sekret0123456789abcdef0123456789abcdef00"
"""Forty characters, as an API key has."""

CHILD = """
import json, logging, sys
from pathlib import Path
from mixgrpo.training import trackers
from mixgrpo.settings.config import RunConfig

# A secret in the code: SECRET
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
trackers.PATIENCE = 2.0
folder, names, first, last, end = json.loads(sys.argv[1])
config = RunConfig.model_validate(
    {"iterations": 9, "output": {"trackers": tuple(names), "project": "shapes"}}
)
opened = trackers.open_trackers(config, Path(folder), "tau=3-seed0")
for i in range(first, last):
    if i % 2 == 0:
        opened.evaluation({"iteration": i, "reward_x_mean": i / 100, "diversity": None})
    opened.metrics({"iteration": i, "reward_x_mean": i / 10, "gradient_cosine": None})
    print("to the console: SECRET")
if end == "killed":
    import os, signal, time
    time.sleep(1.5)  # wandb writes once a second
    os.kill(os.getpid(), signal.SIGKILL)
opened.evaluation({"iteration": last, "reward_x_mean": last / 100})
opened.close()
""".replace("SECRET", SECRET)


@dataclass
class Sandbox:
    """A home that is empty, a network that leads nowhere, and secrets all around."""

    root: Path
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        return self.root / "run"

    def go(
        self, names: tuple[str, ...], first: int = 0, last: int = 4, end: str = "closed"
    ) -> subprocess.CompletedProcess[str]:
        home, code = self.root / "home", self.root / "code"
        for folder in (home, code, self.run):
            folder.mkdir(exist_ok=True)
        if not (code / ".git").exists():
            git = ["git", "-C", str(code), "-c", f"user.email={SECRET}@x.org", "-c", "user.name=x"]
            subprocess.run([*git, "init", "-q"], check=True)
            subprocess.run(
                [*git, "remote", "add", "origin", f"https://{SECRET}@x.org/y"], check=True
            )
            (code / "main.py").write_text(CHILD)
            subprocess.run([*git, "add", "main.py"], check=True)
            subprocess.run([*git, "commit", "-qm", SECRET], check=True)
            (code / "main.py").write_text(CHILD + f"# {SECRET}\n")
        dead = "http://127.0.0.1:9"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HTTP_PROXY": dead,
            "HTTPS_PROXY": dead,
            "SOME_API_KEY": SECRET,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "EMAIL": f"{SECRET}@x.org",
            **self.extra,
        }
        told = json.dumps([str(self.run), names, first, last, end])
        return subprocess.run(
            [sys.executable, "main.py", told, f"--token={SECRET}"],
            cwd=code,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


def records(file: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, found, partial = file.read_bytes(), [], b""
    assert data[:4] == b":W&B"
    place, block = 7, 32768
    while place + 7 <= len(data):
        if block - place % block < 7:  # too short for another header: padding
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        partial += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(partial)
            found.append(record)
            partial = b""
    return found


def rows(found: list[Any]) -> list[dict[str, Any]]:
    """The history, without the columns the library adds."""
    made = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = {
                (i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item
            }
            made.append({k: v for k, v in items.items() if not k.startswith("_") or k == "_step"})
    return made


def wandb_files(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "extra", [{}, {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET}], ids=["no key", "with a key"]
)
def test_wandb_records_offline_and_nothing_private(tmp_path: Path, extra: dict[str, str]) -> None:
    sandbox = Sandbox(tmp_path, extra)
    done = sandbox.go(("wandb",))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ("no API key for wandb, so it is kept offline" in done.stdout) == (not extra)
    assert [p.name for p in sandbox.run.iterdir()] == ["wandb"]

    (file,) = wandb_files(sandbox.run)
    found = records(file)
    assert rows(found) == [
        {"_step": 0, "iteration": 0, "eval/reward_x_mean": 0.0, "train/reward_x_mean": 0.0},
        {"_step": 1, "iteration": 1, "train/reward_x_mean": 0.1},
        {"_step": 2, "iteration": 2, "eval/reward_x_mean": 0.02, "train/reward_x_mean": 0.2},
        {"_step": 3, "iteration": 3, "train/reward_x_mean": 0.3},
        {"_step": 4, "iteration": 4, "eval/reward_x_mean": 0.04},
    ]
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.resume) == ("shapes", "tau=3-seed0", True)
    settings = {item.key: item.value_json for item in run.config.update}
    assert settings["iterations"] == "9"
    assert '"clip_range":0.0001' in settings["objective"].replace(" ", "")
    assert any(
        r.metric.glob_name == "*" and r.metric.step_metric == "iteration"
        for r in found
        if r.WhichOneof("record_type") == "metric"
    )

    assert run.host == ""
    assert not run.git.remote_url
    assert not run.git.commit
    kinds = {r.WhichOneof("record_type") for r in found}
    assert kinds.isdisjoint({"environment", "stats", "output", "output_raw", "files"}), kinds
    contents = bytes_below(sandbox.run)
    assert file in contents
    for path, content in contents.items():
        for private in (SECRET, "main.py", "--token", "AWS_SECRET"):
            assert private.encode() not in content, f"{private} in {path}"


def test_a_resumed_run_is_the_same_run_at_wandb(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    assert sandbox.go(("wandb",), 0, 5, "killed").returncode == -9
    assert sandbox.go(("wandb",), 3, 6).returncode == 0
    files = wandb_files(sandbox.run)
    assert len(files) == 2
    found = [records(file) for file in files]
    ids = {r.run.run_id for part in found for r in part if r.WhichOneof("record_type") == "run"}
    assert len(ids) == 1
    # A step that both have says the same, so that it does not matter which one is kept.
    first, second = ({row["_step"]: row for row in rows(part)} for part in found)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert sorted(second) == [3, 4, 5, 6]
    assert {k: first[k] for k in (3, 4)} == {k: second[k] for k in (3, 4)}


def test_a_server_that_cannot_be_reached_stops_nothing(tmp_path: Path) -> None:
    extra = {"WANDB_API_KEY": SECRET, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    sandbox = Sandbox(tmp_path, extra)
    done = sandbox.go(("wandb", "tensorboard"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("wandb failed (CommError") == 1
    assert points(sandbox.run, "train") == [(i, pytest.approx(i / 10)) for i in range(4)]
    for path, content in bytes_below(sandbox.run).items():
        assert SECRET.encode() not in content, path


IN_A_SWEEP = """
import sys
from pathlib import Path
import torch
from mixgrpo.training import trackers
from mixgrpo.settings.config import RunConfig

folder = Path(sys.argv[1])
names = ("wandb", "tensorboard")
config = RunConfig.model_validate({"seed": 3, "output": {"trackers": names}})
opened = trackers.open_trackers(config, folder, folder.name)
for i in (0, 5):
    opened.samples(i, ["a <b>cross</b>", "字 $x$"], torch.rand(2, 3, 8, 8))
    opened.evaluation({"iteration": i, "reward_x_mean": 0.5})
opened.close()
"""


def test_a_sweeps_run_has_its_group_tags_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arm = "a-" + "long " * 30 + "=[x]"
    folder = tmp_path / "tau" / f"{arm}-seed3-0a1b2c3d"
    folder.mkdir(parents=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SWEEP, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (file,) = wandb_files(folder)
    found = records(file)
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert run.run_group == "tau"
    assert [len(tag) <= 64 for tag in run.tags] == [True, True]
    assert run.tags[0].startswith("arm a-long long")
    assert run.tags[1] == "seed 3"
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (settings["sweep"], settings["arm"], settings["seed"]) == ("tau", arm, 3)
    captions = [
        json.loads(item.value_json)
        for record in found
        for item in record.history.item
        if list(item.nested_key) == ["eval/samples", "captions"]
    ]
    assert captions == [["a <b>cross</b>", "字 $x$"]] * 2
    assert len(list(file.parent.rglob("*.png"))) == 4

    read = EventAccumulator(str(folder / "tensorboard" / "eval"))
    read.Reload()
    assert [(image.step, image.width) for image in read.Images("samples/1")] == [(0, 8), (5, 8)]
    texts = read.Tensors("samples/0/text_summary")
    assert texts[0].tensor_proto.string_val[0].decode() == r"a \<b>cross\</b>"


def test_a_runs_sweep_is_in_the_names_of_its_folders(tmp_path: Path) -> None:
    assert sweep_run(tmp_path / "runs" / "mine") is None
    assert sweep_run(tmp_path / "tau" / "w=4-seed12-0a1b2c3d") == SweepRun("tau", "w=4", 12)


def points(run: Path, part: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of one reward."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard" / part))
    read.Reload()
    assert read.Tags()["scalars"] == ["reward_x_mean"]
    return [(event.step, event.value) for event in read.Scalars("reward_x_mean")]


def make(*names: str) -> RunConfig:
    return RunConfig.model_validate({"output": {"trackers": names}})


def line(iteration: int, value: float) -> dict[str, Any]:
    return {"iteration": iteration, "reward_x_mean": value, "gradient_cosine": None}


def test_tensorboard_shows_an_iteration_once_though_it_was_run_twice(tmp_path: Path) -> None:
    killed = open_trackers(make("tensorboard"), tmp_path, "x")
    killed.evaluation(line(0, 5.0))
    for i in range(5):
        killed.metrics(line(i, i))
        if i == 2:
            killed.evaluation(line(3, 6.0))
    assert points(tmp_path, "train") == [(i, i) for i in range(5)]  # not closed, yet written
    killed.evaluation(line(5, 7.0))

    time.sleep(1.05 - time.time() % 1)  # its files are ordered by the second they were begun in
    resumed = open_trackers(make("tensorboard"), tmp_path, "x")
    for i in range(3, 7):
        resumed.metrics(line(i, i + 0.5))
    resumed.evaluation(line(5, 7.5))
    resumed.close()
    steps = [(0, 0), (1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert points(tmp_path, "train") == steps
    # The evaluation of the checkpoint that was resumed from was kept, and is not made again.
    assert points(tmp_path, "eval") == [(0, 5.0), (3, 6.0), (5, 7.5)]
    assert [p.name for p in tmp_path.iterdir()] == ["tensorboard"]


def warned(act: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        act()
    return [str(w.message) for w in seen if w.category is UserWarning]


def test_a_tracker_whose_disk_goes_away_is_off_after_one_warning(tmp_path: Path) -> None:
    opened = open_trackers(make("tensorboard"), tmp_path, "x")
    opened.metrics(line(0, 0.0))
    shutil.rmtree(tmp_path / "tensorboard")

    def go_on() -> None:
        for i in range(1, 5):
            opened.metrics(line(i, i))
        opened.evaluation(line(5, 1.0))
        opened.close()

    (text,) = warned(go_on)
    assert text.startswith(f"{tmp_path}: tensorboard failed (")
    assert "is off from here on" in text


def test_a_tracker_that_cannot_begin_is_off_after_one_warning(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")

    def go() -> None:
        opened = open_trackers(make("tensorboard"), tmp_path, "x")
        opened.metrics(line(0, 0.0))
        opened.close()

    (text,) = warned(go)
    assert "tensorboard failed (FileExistsError" in text


class Recorder:
    """Notes what it is given, and fails from the iteration `fails` on."""

    def __init__(self, fails: int = 99) -> None:
        self.fails, self.seen, self.closed = fails, list[Any](), False

    def log(self, part: str, iteration: int, values: dict[str, float]) -> None:
        if iteration >= self.fails:
            raise ConnectionResetError("gone\nand more")
        self.seen.append((part, iteration, values))

    def show(self, iteration: int, prompts: Sequence[str], images: Sequence[Tensor]) -> None:
        self.seen.append(("samples", iteration, list(prompts)))

    def close(self) -> None:
        self.closed = True


def test_the_others_go_on_where_one_fails(tmp_path: Path) -> None:
    broken, whole = Recorder(fails=1), Recorder()
    trackers = Trackers(tmp_path, {"broken": broken, "whole": whole})

    def go() -> None:
        for i in range(3):
            trackers.metrics(line(i, i))
        trackers.evaluation(line(3, 0.5))
        trackers.close()

    (text,) = warned(go)
    assert "broken failed (ConnectionResetError: gone) and is off" in text
    assert [i for _, i, _ in broken.seen] == [0]
    assert whole.seen[2:] == [
        ("train", 2, {"reward_x_mean": 2.0}),
        ("eval", 3, {"reward_x_mean": 0.5}),
    ]
    assert whole.closed
    assert warned(lambda: trackers.metrics(line(4, 4))) == []
    assert len(whole.seen) == 4


def test_without_trackers_nothing_is_imported() -> None:
    code = (
        "import sys; from pathlib import Path; from mixgrpo.settings.config import RunConfig; "
        "from mixgrpo.training.trackers import open_trackers; "
        "t = open_trackers(RunConfig(), Path('none'), 'x'); t.metrics({'iteration': 0}); t.close();"
        "assert not {'wandb', 'tensorboard', 'torch'} & set(sys.modules); "
        "assert not Path('none').exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "module", "found"),
    [
        ("wandb", "wandb", None),
        # What `import wandb` finds beside a folder of that name where nothing is installed.
        ("wandb", "wandb", types.ModuleType("wandb")),
        ("tensorboard", "torch.utils.tensorboard", None),
    ],
)
def test_a_missing_package_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, module: str, found: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, found)
    with pytest.raises(ConfigError, match=rf"output.trackers: {name}.*pip install 'mixgrpo\[tr"):
        open_trackers(make(name), tmp_path, "x")


def test_the_id_is_of_the_name_and_of_what_changes_the_result() -> None:
    same = run_id(RunConfig(), "a")
    assert same == run_id(make("wandb"), "a")
    assert len({same, run_id(RunConfig(seed=1), "a"), run_id(RunConfig(), "b")}) == 3
