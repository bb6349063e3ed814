"""Whatever a run's folder holds: it is named and left out, the rest is reported, nothing ends in a
traceback, and running the sweep again makes it again."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import report, status, sweep
from harness.analysis.results import collect
from harness.runs.folder import look_at_attempts, next_attempt
from harness.runs.records import Attempt
from mixgrpo import train
from mixgrpo.cli import run as run_command
from mixgrpo.errors import RunError
from tests.harness.lab import Lab
from tests.harness.synthetic import write_runs
from tests.mixgrpo.outcomes import SMALL, outcome

FILE = """\
name: tau
question: Is it the same?
set: {iterations: 12, evaluation.every: 12}
grid: {window.interval: [9, 15]}
seeds: 3
reference: {window.interval: 15}
"""

BAD: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]\n",
    "a number": b"7\n",
    "half a line": b'{"iteration": 0, "sec',
    "not UTF-8": b"\xff\xfe\x00\xd8\n",
    "zeros": bytes(300),
    "deep nesting": b"[" * 200_000 + b"\n",
    "deep objects": b'{"a":' * 50_000 + b"\n",
    "a huge number": b'{"iteration": ' + b"9" * 6000 + b"}\n",
    "a lone surrogate": b'{"iteration": 0, "seconds_total": "\\ud800"}\n',
}

NO_FILES: dict[str, Callable[[Path], None]] = {
    "a folder": Path.mkdir,
    "a pipe that nobody writes to": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "terabytes of zeros": lambda path: (path.touch(), os.truncate(path, 2**42))[1],
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


RECORDS = ("result.json", "attempts/1.json", "origin.json", "env.json")
FILES = (
    *("result.json", "metrics.jsonl", "eval.jsonl", "env.json", "origin.json"),
    *("attempts/1.json", "samples/prompts.json", "samples/000000/0.png", "config.yaml"),
)

ATTEMPT = Attempt(number=1, pid=1, started=10.0, ended=20.0, reason="finished")
ORIGIN = {"run": "a/b", "iterations": 3, "seconds": 1.0, "trained_by": "a"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of six finished runs, and its file."""
    from harness.study.load import load_sweep

    place = tmp_path_factory.mktemp("damage")
    (place / "tau.yaml").write_text(FILE)
    made = load_sweep(place / "tau.yaml")
    write_runs(made, place / "runs")
    for run in made.runs:
        folder = place / "runs" / "tau" / run.folder_name
        (folder / "attempts").mkdir()
        (folder / "attempts" / "1.json").write_text(ATTEMPT.model_dump_json())
    return place


@pytest.fixture
def victim(place: Path) -> Iterator[Path]:
    """A run's folder that may be spoiled: of the reference, whose pictures are shown."""
    from harness.study.load import load_sweep

    run = next(r for r in load_sweep(place / "tau.yaml").runs if r.arm == "interval=15")
    folder = place / "runs" / "tau" / run.folder_name
    kept = place / "kept"
    shutil.copytree(folder, kept)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def said(
    command: Callable[..., Any],
    words: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str]:
    """Exit code and output of a command; an exception that escapes it fails the test."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["command", "tau.yaml", "--runs", "runs", *words])
    with pytest.raises(SystemExit) as stopped:
        run_command(command)
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out + output.err


def look_at(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What status and --plan say; neither may fail."""
    text = ""
    for command, words in (
        (status.main, []),
        (status.main, ["--json"]),
        (sweep.main, ["--plan", "--executor", "inline"]),
    ):
        code, output = said(command, words, place, monkeypatch, capsys)
        assert code == 0, output
        text += output
    return text


@pytest.mark.parametrize("file", FILES)
def test_no_content_of_a_file_ends_status_or_plan_or_what_a_report_reads(
    file: str,
    place: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.analysis.measurements import gather
    from harness.study.load import load_sweep

    made = load_sweep(place / "tau.yaml")
    bad = {name: partial(_write, content=content) for name, content in BAD.items()}
    for name, make in {**bad, **NO_FILES}.items():
        if name == "terabytes of zeros" and file not in RECORDS:
            continue
        target = victim / file
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        make(target)
        look_at(place, monkeypatch, capsys)
        found = gather(made, place / "runs", place / "nowhere")
        lost = file in ("result.json", "metrics.jsonl", "eval.jsonl")
        states = list(found.results.runs["state"])
        assert states.count("finished") == (5 if lost else 6), name
        lines = found.results.metrics
        assert len(set(zip(lines["arm"], lines["seed"], strict=True))) == (5 if lost else 6)
        none = (file, name) == ("samples/prompts.json", "a list")  # of no pictures
        if file not in ("config.yaml", "attempts/1.json") and not none:
            assert any(str(victim) in text for text in found.results.left_out), name
            assert len(found.results.left_out) == 1


def test_a_whole_record_is_read_back(place: Path, victim: Path) -> None:
    assert look_at_attempts(victim) == ((ATTEMPT,), ())
    text = '{"number": 2, "pid": 1, "started": 1.0, "of_a_later_version": [1]}'
    (victim / "attempts" / "2.json").write_text(text)
    assert [a.number for a in look_at_attempts(victim)[0]] == [1, 2]
    (victim / "attempts" / "7.json").write_text("{")
    assert next_attempt(victim) == 8  # a damaged record keeps its number


def fields(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The record with every field of every wrong type, and without it."""
    for key in record:
        yield {k: v for k, v in record.items() if k != key}
        for value in (None, "x", -1, 1e308, 10**30, [], {}, [[]], {"a": {"b": []}}, True):
            yield record | {key: value}


@pytest.mark.parametrize("file", RECORDS)
def test_no_field_of_a_wrong_type_ends_a_look(file: str, place: Path, victim: Path) -> None:
    from harness.launching.status import Observer, as_data, as_text
    from harness.runs.ledger import ledger
    from harness.slurm.scheduler import Scheduler
    from harness.study.load import load_sweep

    made = load_sweep(place / "tau.yaml")
    target = victim / file
    record = json.loads(target.read_text()) if target.exists() else ORIGIN
    for wrong in fields(record):
        target.write_text(json.dumps(wrong))
        seen = Observer(made, place / "runs", Scheduler(place / "runs" / "tau"))
        try:
            seen.look()
        except RunError:  # a number of another version
            assert wrong["schema"] != record["schema"]
            continue
        as_text(seen)
        json.dumps(as_data(seen), allow_nan=False)
        ledger(seen.states, seen.folder)
        collect(made, place / "runs")


def test_a_report_names_what_is_damaged_once_and_has_the_rest(
    place: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def reported() -> tuple[int, str]:
        return said(report.main, ["--reports", "reports"], place, monkeypatch, capsys)

    monkeypatch.setattr("harness.reporting.figures.DPI", 30)
    assert reported()[0] == 0
    whole = (place / "reports" / "tau" / "table.csv").read_text()
    picture = victim / "samples" / "000012" / "0.png"
    picture.write_bytes(picture.read_bytes()[:40])
    for _ in range(2):  # it is said again
        code, text = reported()
        assert code == 1
        assert text.count(str(picture.relative_to(place))) == 1
        assert (place / "reports" / "tau" / "table.csv").read_text() == whole
    metrics = victim / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-3000])
    code, text = reported()
    assert code == 1
    assert text.count("metrics.jsonl: lost 3000 of its") == 1
    assert "run the sweep again" in text
    assert (place / "reports" / "tau" / "table.csv").read_text() != whole
    assert "1 of 6 runs are not finished" in (place / "reports/tau/index.html").read_text()
    assert "metrics.jsonl: lost 3000" in look_at(place, monkeypatch, capsys)


@pytest.mark.parametrize("key", ["before", "after"])
def test_a_result_that_contradicts_the_evaluations_is_damaged(
    key: str, place: Path, victim: Path
) -> None:
    from harness.study.load import load_sweep

    file = victim / "result.json"
    result = json.loads(file.read_text())
    result[key]["composition"] += 0.1
    of_lines = {name: said for name, said in result["digests"].items() if name != "result.json"}
    for digests in (of_lines, {}):
        file.write_text(json.dumps(result | {"digests": digests}))
        results = collect(load_sweep(place / "tau.yaml"), place / "runs")
        assert f"{key}.composition is" in results.left_out[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iterations", 400),
        ("seconds_total", 1e6),
        ("evaluations_computed", 3),
        ("backward_computed", 1),
        ("nfe_rollout", 77.0),
        ("nfe_train", 0.5),
        ("seed", 7),
    ],
)
def test_a_result_whose_totals_were_changed_is_named_by_every_command(
    key: str,
    value: float,
    place: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = victim / "result.json"
    result = json.loads(file.read_text()) | {key: value}
    # As this version writes them; as earlier ones did, with digests of the lines and without.
    earlier = {name: said for name, said in result["digests"].items() if name != "result.json"}
    whole = "was changed after the run finished"
    for digests, why in ((result["digests"], whole), (earlier, key), ({}, "")):
        file.write_text(json.dumps(result | {"digests": digests}))
        for command, words, code in (
            (status.main, [], 0),
            (sweep.main, ["--plan"], 0),
            (report.main, [], 1),
        ):
            given, output = said(command, words, place, monkeypatch, capsys)
            assert given == code, output
            (line,) = (text for text in output.splitlines() if f"{victim.name}/" in text)
            assert why in line
            assert "run the sweep again" in line or "makes again" in line
        shutil.rmtree(place / "reports", ignore_errors=True)


def test_results_of_earlier_versions_count_and_their_lines_are_counted(
    place: Path, victim: Path
) -> None:
    from harness.study.load import load_sweep

    made = load_sweep(place / "tau.yaml")
    file = victim / "result.json"
    result = json.loads(file.read_text())
    del result["digests"]
    file.write_text(json.dumps(result))
    assert collect(made, place / "runs").left_out == []
    for name in ("metrics.jsonl", "eval.jsonl"):
        kept = (victim / name).read_bytes()
        (victim / name).write_bytes(kept[: kept.rstrip(b"\n").rfind(b"\n") + 1])
        (text,) = collect(made, place / "runs").left_out
        assert f"{name}: has" in text
        (victim / name).write_bytes(kept)


# ---- repair


def spoil_end(text: bytes) -> bytes:
    return text[: text.rstrip(b"\n").rfind(b"\n") + 1]


def spoil_number(text: bytes) -> bytes:
    """Another number in the first line, which is JSON as before."""
    at = text.index(b'"seconds_total": 0.') + 20
    return text[:at] + (b"1" if text[at : at + 1] != b"1" else b"2") + text[at + 1 :]


def test_a_file_in_place_of_the_attempts_is_named(lab: Lab) -> None:
    lab.write(FILE.replace("seeds: 3", "seeds: 1"))
    folder = lab.states()["interval=9-seed0"].folder
    folder.mkdir(parents=True)
    (folder / "attempts").touch()
    assert look_at_attempts(folder) == (
        (),
        (f"{folder}/attempts: is no folder; remove it, the run itself is unharmed",),
    )
    code, output = lab.finish()
    assert code == 1
    assert f"interval=9-seed0: {folder}/attempts: is no folder; remove it" in output
    (folder / "attempts").unlink()
    assert lab.finish()[0] == 0


def test_a_sweep_looks_into_all_lines_of_finished_runs(lab: Lab) -> None:
    """Also of a size and a time that say nothing, as a bad disk and `rsync -t` leave them."""
    lab.write(FILE.replace("seeds: 3", "seeds: 1"))
    assert lab.finish()[0] == 0
    folder = lab.states()["interval=9-seed0"].folder
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text(whole.replace('"iteration": 3', '"iteration": 4', 1))
    os.utime(metrics, (0, 0))
    assert lab.states()["interval=9-seed0"].state == "finished"
    shutil.rmtree(folder / "checkpoints")  # of which the fake trainer would believe the number
    code, output = lab.finish()
    assert code == 0, output
    assert "metrics.jsonl: was changed after the run finished; the result is set aside" in output
    assert output.count(": started") == 1
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == [
        json.loads(line)["iteration"] for line in whole.splitlines()
    ]


@pytest.mark.filterwarnings("ignore:.*iterations only")
@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl"])
@pytest.mark.parametrize("spoil", [spoil_end, spoil_number, lambda text: b""])
def test_a_finished_run_that_lost_lines_is_made_again_to_the_same_bytes(
    name: str, spoil: Callable[[bytes], bytes], tmp_path: Path, toy_site: Path
) -> None:
    train.run(SMALL, tmp_path)
    whole, result = outcome(tmp_path), (tmp_path / "result.json").read_bytes()
    file = tmp_path / name
    spoiled = spoil(file.read_bytes())
    file.write_bytes(spoiled)
    with pytest.warns(UserWarning, match="set aside as result.json.damaged-1"):
        assert train.run(SMALL, tmp_path) == "finished"
    assert outcome(tmp_path) == whole
    assert (tmp_path / "result.json.damaged-1").read_bytes() == result
    if spoil is spoil_number:
        assert spoiled.splitlines()[0] not in file.read_bytes().splitlines()
    assert train.run(SMALL, tmp_path) == "finished"  # and is whole now
