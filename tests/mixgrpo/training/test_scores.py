"""Every image's score: as a run, `evaluate` and `generate` write it, and what becomes of it when it
is lost. It is read here by pandas and pyarrow, not by what wrote it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from mixgrpo import evaluate, generate, train
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import records
from mixgrpo.files.scores import as_parquet, scores_table
from mixgrpo.runs.folder import Measured
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import dump_config
from mixgrpo.settings.identity import config_hash
from tests.mixgrpo import toy
from tests.mixgrpo.outcomes import SMALL, iterations, lines, outcome, stopped_at
from tests.mixgrpo.toy import PROMPTS

pytestmark = pytest.mark.usefixtures("toy_site")

FINAL = toy.config(
    evaluation={"final_images_per_prompt": 5, "images_per_prompt": 2},
    optimizer={"lr": 0.05},
    output={"checkpoints_kept": 9, "samples": 2},
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "run"
    assert train.run(SMALL, folder) == "finished"
    return folder


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """A run whose last evaluation has five images of each prompt, the others two."""
    folder = tmp_path_factory.mktemp("final") / "run"
    assert train.run(FINAL, folder) == "finished"
    return folder


def scores(folder: Path, iteration: int) -> pd.DataFrame:
    return pd.read_parquet(folder / "scores" / f"{iteration:06d}.parquet")


# ---- What is in a file


def test_each_evaluation_has_a_file_of_this_schema(undisturbed: Path) -> None:
    evals = lines(undisturbed / "eval.jsonl")
    files = sorted((undisturbed / "scores").iterdir())
    assert [f.name for f in files] == ["000000.parquet", "000002.parquet", "000004.parquet"]
    assert [line["iteration"] for line in evals] == [0, 2, 4]
    for file, line in zip(files, evals, strict=True):
        fields = [(f.name, f.type, f.nullable) for f in parquet.read_schema(file)]
        assert fields == [
            ("prompt", pa.string(), False),
            ("image", pa.int32(), False),
            ("seed", pa.int64(), False),
            ("reward_brightness", pa.float32(), False),
            ("reward_contrast", pa.float32(), False),
        ]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == line["scores_sha256"]
        table = pd.read_parquet(file)
        assert list(table["prompt"]) == [p for p in PROMPTS[7:] for _ in range(2)]
        assert list(table["image"]) == [0, 1, 0, 1]
        assert set(table["seed"]) == {3}


def test_its_means_are_those_of_its_line(undisturbed: Path, final: Path) -> None:
    """The toy scores in float32, so that nothing is lost in the file."""
    for folder in (undisturbed, final):
        for line in lines(folder / "eval.jsonl"):
            table = scores(folder, line["iteration"])
            assert len(table) == line["images"]
            assert table["prompt"].nunique() == line["prompts"]
            for name in ("brightness", "contrast"):
                values = table[f"reward_{name}"].to_numpy(float)
                assert values.mean() == pytest.approx(line[f"reward_{name}_mean"], rel=1e-12)
                assert values.std(ddof=1) == pytest.approx(line[f"reward_{name}_std"], rel=1e-9)


def test_the_bytes_of_a_table_are_those_of_its_numbers() -> None:
    values = {"a": np.arange(6.0).reshape(2, 3) / 7}
    one, other = (as_parquet(scores_table(["x", "y"], 5, values)) for _ in range(2))
    assert one == other
    assert one != as_parquet(scores_table(["x", "y"], 6, values))
    read = parquet.read_table(pa.BufferReader(one))
    assert read["reward_a"].to_pylist() == [float(np.float32(k / 7)) for k in range(6)]


# ---- More images at the end


def test_the_last_evaluation_begins_with_the_images_of_the_others(
    final: Path, tmp_path: Path
) -> None:
    usual = FINAL.model_copy(
        update={"evaluation": FINAL.evaluation.model_copy(update={"final_images_per_prompt": None})}
    )
    train.run(usual, tmp_path)
    assert [line["images"] for line in lines(final / "eval.jsonl")] == [4, 4, 10]
    for iteration in (0, 2):
        name = f"scores/{iteration:06d}.parquet"
        assert (final / name).read_bytes() == (tmp_path / name).read_bytes()
    last = scores(final, 4)
    assert list(last["image"]) == [0, 1, 2, 3, 4] * 2
    first = last[last["image"] < 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, scores(tmp_path, 4), check_exact=True)
    assert last["reward_contrast"].nunique() == 10
    a, b = lines(final / "eval.jsonl")[-1], lines(tmp_path / "eval.jsonl")[-1]
    assert a["diversity"] == b["diversity"]
    for k in range(2):
        name = f"samples/000004/{k}.png"
        assert (final / name).read_bytes() == (tmp_path / name).read_bytes()


def test_it_is_another_run_and_the_default_is_none() -> None:
    plain = toy.config()
    assert config_hash(FINAL) != config_hash(
        toy.config(optimizer={"lr": 0.05}, output={"checkpoints_kept": 9, "samples": 2})
    )
    assert config_hash(toy.config(evaluation={"final_images_per_prompt": None})) == config_hash(
        plain
    )
    with pytest.raises(ValueError, match="final_images_per_prompt 1 is less than"):
        toy.config(evaluation={"final_images_per_prompt": 1})


def test_a_longer_run_makes_what_was_the_last_evaluation_anew(tmp_path: Path) -> None:
    def config(iterations: int) -> RunConfig:
        return toy.config(iterations=iterations, evaluation={"final_images_per_prompt": 5})

    train.run(config(2), tmp_path / "run")
    assert lines(tmp_path / "run" / "eval.jsonl")[-1]["images"] == 10
    train.run(config(5), tmp_path / "run")
    train.run(config(5), tmp_path / "at once")
    assert [x["images"] for x in lines(tmp_path / "run" / "eval.jsonl")] == [4, 4, 4, 10]
    assert outcome(tmp_path / "run") == outcome(tmp_path / "at once")


# ---- What can become of a file


def spoil_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


def into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def into_link(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


SPOIL: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "a bit": spoil_bit,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "another's": lambda file: shutil.copy(file.with_name("000000.parquet"), file),
    "a folder": into_folder,
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link to itself": into_link,
    "no folder": lambda file: (shutil.rmtree(file.parent), file.parent.touch()),
}


@pytest.mark.filterwarnings("ignore:.*iterations only")
@pytest.mark.parametrize("how", SPOIL)
def test_a_finished_run_that_lost_scores_makes_them_again_to_the_same_bytes(
    how: str, undisturbed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    SPOIL[how](folder / "scores" / "000002.parquet")
    result = records.read_result(folder)
    assert result is not None
    with pytest.raises(records.DamagedFileError, match=r"scores/00000\d.parquet: "):
        records.check_lines(folder, result, 2)  # as status looks at it
    with pytest.warns(UserWarning, match=r"scores/00000\d.*set aside as result.json.damaged-1"):
        assert train.run(SMALL, folder) == "finished"
    found, whole = outcome(folder), outcome(undisturbed)
    found["scores"] = {k: v for k, v in found["scores"].items() if ".damaged-" not in k}
    assert found == whole
    assert train.run(SMALL, folder) == "finished"


@pytest.mark.parametrize("iteration", [0, 2])
def test_a_stopped_run_that_lost_scores_makes_them_again(
    iteration: int, undisturbed: Path, tmp_path: Path
) -> None:
    stopped_at(tmp_path, 3)
    (tmp_path / "scores" / f"{iteration:06d}.parquet").unlink()
    with pytest.warns(UserWarning, match=f"of the first {iteration} iterations only, not of 3"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == outcome(undisturbed)


def test_scores_lost_while_the_run_goes_on_are_named(undisturbed: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores" / "000000.parquet"

    def lose() -> bool:
        if iterations(tmp_path) == 3:
            file.unlink(missing_ok=True)
        return False

    with pytest.raises(RunError, match="or scores of an evaluation; run the same command again"):
        train.run(SMALL, tmp_path, lose)
    assert not (tmp_path / "result.json").exists()
    with pytest.warns(UserWarning, match="iterations only, not of 4"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == outcome(undisturbed)


def test_what_a_clock_does_not_show_is_seen_by_whoever_reads(
    undisturbed: Path, tmp_path: Path
) -> None:
    """A bad disk changes no time: a look at thousands of runs passes it over, the sweep and the
    reader of the scores do not."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    file = folder / "scores" / "000002.parquet"
    spoil_bit(file)
    os.utime(file, (0, 0))
    result = records.read_result(folder)
    assert result is not None
    records.check_lines(folder, result, 2)
    with pytest.raises(records.DamagedFileError, match=r"000002\.parquet: was changed after"):
        records.check_lines(folder, result, 2, thorough=True)
    with pytest.raises(records.DamagedFileError, match=r"000002\.parquet: was changed after"):
        records.check_scores(folder, lines(folder / "eval.jsonl")[1])


def test_a_run_of_an_earlier_version_has_none_and_counts(undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.rmtree(folder / "scores")
    evals = folder / "eval.jsonl"
    old = [{k: v for k, v in x.items() if k != "scores_sha256"} for x in lines(evals)]
    evals.write_text("".join(json.dumps(line) + "\n" for line in old))
    result = json.loads((folder / "result.json").read_text())
    del result["digests"]["result.json"]
    result["digests"]["eval.jsonl"] = records.measured(evals.read_bytes()).model_dump()
    (folder / "result.json").write_text(json.dumps(result))
    assert train.run(SMALL, folder) == "finished"
    assert not (folder / "scores").exists()
    assert not list(folder.glob("*damaged*"))
    # One that was stopped goes on, and has scores from there on.
    (folder / "result.json").unlink()
    (folder / "metrics.jsonl").write_text(
        "".join((folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:3])
    )
    shutil.rmtree(folder / "checkpoints" / "000004")
    manifest = folder / "checkpoints" / "000003" / "manifest.json"
    said = json.loads(manifest.read_text())
    said["digests"] = Measured(SMALL, folder).digests(3)
    manifest.write_text(json.dumps(said))
    assert train.run(SMALL, folder) == "finished"
    assert [f.name for f in (folder / "scores").iterdir()] == ["000004.parquet"]
    assert ["scores_sha256" in x for x in lines(evals)] == [False, False, True]


KILLED = """
import os, signal, sys
from pathlib import Path
from mixgrpo import train
from mixgrpo.files import scores
from mixgrpo.settings.configfile import load_config
from mixgrpo.training import run

moment, folder = sys.argv[1], Path(sys.argv[3])
keep, replace = run.keep_scores, Path.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killed(folder, iteration, table):
    if iteration != 2:
        return keep(folder, iteration, table)
    if moment == "within":
        Path.replace = lambda *_: die()
    if moment != "before":
        keep(folder, iteration, table)
    die()

run.keep_scores = killed
train.run(load_config(Path(sys.argv[2])), folder)
"""


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_kill_between_scores_and_line_ends_with_the_same_bytes(
    moment: str, undisturbed: Path, tmp_path: Path, toy_site: Path
) -> None:
    file, folder = tmp_path / "config.yaml", tmp_path / "run"
    file.write_text(dump_config(SMALL))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(file), str(folder)],
        env=toy.environment(toy_site),
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["iteration"] for line in lines(folder / "eval.jsonl")] == [0]
    assert (folder / "scores" / "000002.parquet").exists() == (moment == "after")
    assert train.run(SMALL, folder) == "finished"
    assert outcome(folder) == outcome(undisturbed)
    assert not [f for f in (folder / "scores").iterdir() if f.suffix != ".parquet"]


def test_a_run_that_is_another_ones_by_now_writes_no_scores(
    undisturbed: Path, tmp_path: Path
) -> None:
    class Lost(Exception):
        pass

    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:  # before the first evaluation, and after it
            raise Lost
        return False

    with pytest.raises(Lost):
        train.run(SMALL, tmp_path, should_stop)
    assert not (tmp_path / "scores").exists()
    assert not (tmp_path / "eval.jsonl").exists()


# ---- The same table by command


def test_evaluate_writes_the_runs_last_evaluation(
    final: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.parquet"
    evaluate.main(final, parquet=file, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["images_per_prompt"] == 5
    table = pd.read_parquet(file)
    assert list(table.columns[:2]) == ["checkpoint", "p_mix"]
    assert list(table["p_mix"].unique()) == [0.0, 1.0]
    assert set(table["checkpoint"]) == {4}
    pure = table[table["p_mix"] == 1.0].drop(columns=["checkpoint", "p_mix"])
    pd.testing.assert_frame_equal(pure.reset_index(drop=True), scores(final, 4), check_exact=True)
    base = table[(table["p_mix"] == 0.0) & (table["image"] < 2)]
    pd.testing.assert_frame_equal(
        base.drop(columns=["checkpoint", "p_mix"]).reset_index(drop=True),
        scores(final, 0),
        check_exact=True,
    )
    pd.testing.assert_frame_equal(
        pd.DataFrame(said["scores"]), table, check_exact=True, check_dtype=False
    )
    # On the way there are as many as there were.
    evaluate.main(final, checkpoint=2, parquet=file)
    table = pd.read_parquet(file)
    pure = table[table["p_mix"] == 1.0].drop(columns=["checkpoint", "p_mix"])
    pd.testing.assert_frame_equal(pure.reset_index(drop=True), scores(final, 2), check_exact=True)


def test_generate_scores_the_images_that_it_draws(final: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "scores.parquet", tmp_path / "images"
    generate.main(final, out=out, images=3, checkpoint=[4], parquet=file, prompt=PROMPTS[7:])
    table = pd.read_parquet(file)
    assert list(table.columns) == [
        *("checkpoint", "p_mix", "prompt", "image", "seed"),
        *("reward_brightness", "reward_contrast"),
    ]
    last = scores(final, 4)
    last = last[last["image"] < 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(table.drop(columns=["checkpoint", "p_mix"]), last, rtol=1e-5)
    listed = json.loads((out / "manifest.json").read_text())["images"]
    assert {(x["prompt"], x["index"], x["seed"]) for x in listed} == set(
        zip(table["prompt"], table["image"], table["seed"], strict=True)
    )
    generate.main(final, out=out, checkpoint=[2, 4], seed=[3, 8], parquet=file)
    table = pd.read_parquet(file)
    assert table.groupby(["checkpoint", "seed"]).size().to_dict() == {
        (m, k): 2 for m in (0, 2, 4) for k in (3, 8)
    }
    assert set(table[table["checkpoint"] == 0]["p_mix"]) == {0.0}


@pytest.mark.parametrize("command", [evaluate.main, generate.main])
def test_a_file_that_cannot_be_written_is_refused_before_any_image(
    command: Callable[..., Any], final: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--parquet no/such/file: .* is not a folder"):
        command(final, parquet=Path("no/such/file"))
    with pytest.raises(ConfigError, match="only read"):
        command(final, parquet=final / "scores" / "mine.parquet")
    assert list(tmp_path.iterdir()) == []
