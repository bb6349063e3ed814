"""Code of the user's own that changes between two commands: other runs, none mixed, none lost."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.analysis.analyse import analyse
from harness.analysis.results import collect
from harness.launching.job import make_job
from harness.launching.status import as_data, as_text
from harness.reporting.notes import missing
from harness.reporting.unchanged import digest
from harness.runs.codechange import AcceptedCode, read_accepted
from harness.runs.folder import read_attempts
from harness.runs.state import look
from harness.study.load import load_sweep
from mixgrpo.files.records import read_result, sealed
from mixgrpo.settings.identity import config_hash
from tests.harness import lab as labs
from tests.harness.lab import SMALL, Lab
from tests.harness.synthetic import make_sweep, seal, write_runs

LION = "from torch.optim import SGD\n\n\nclass Lion(SGD):\n    scale = 1\n"
SWEEP = SMALL.replace("set: {", "set: {optimizer.name: lion.Lion, ")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A sweep whose optimizer is a module beside its file."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(labs, "SEARCHED", f"{tmp_path}:{labs.SEARCHED}")
    write(tmp_path, 1)
    made = Lab(tmp_path, executor=("--trust",))
    made.write(SWEEP)
    yield made
    for launcher in made.launchers:
        launcher.kill()


def write(place: Path, scale: int) -> None:
    (place / "lion.py").write_text(LION.replace("= 1", f"= {scale}"))


def contents(lab: Lab) -> dict[str, bytes]:
    """What lies in the folders of runs, by path."""
    return {
        str(path.relative_to(lab.runs)): path.read_bytes()
        for path in lab.runs.rglob("*")
        if path.is_file() and "-seed" in str(path) and "/owner/" not in str(path)
    }


def test_changed_code_makes_other_runs_and_the_old_ones_stay_and_are_named(lab: Lab) -> None:
    code, _ = lab.finish()
    assert code == 0
    old = contents(lab)
    names = {state.folder.name for state in lab.states().values()}
    write(lab.root, 2)
    code, said = lab.finish("--plan")
    assert code == 0
    assert "2 run(s) have the same settings, but were made before your own code" in said
    code, said = lab.finish()
    assert code == 0
    assert "2 of 2 runs finished" in said
    assert all(name in said for name in names)
    assert {path: content for path, content in contents(lab).items() if path in old} == old
    seen = lab.observe()
    assert set(as_data(seen)["of_other_code"]) == names
    assert as_data(seen)["no_longer_in_the_file"] == []
    assert "made before your own code changed" in as_text(seen)
    # A comment changes no code.
    (lab.root / "lion.py").write_text(LION.replace("= 1", "= 2  # twice"))
    assert {s.state for s in lab.states().values()} == {"finished"}

    # Accepted, the newest of the finished ones is the run's own, and the report says so.
    sources = {name: state.folder for name, state in lab.states().items()}
    write(lab.root, 3)
    code, said = lab.finish("--accept-code-change", "--plan")
    assert code == 0
    code, said = lab.finish("--accept-code-change")
    assert code == 0, said
    states = lab.states()
    for name, state in states.items():
        assert state.attempts == ()
        accepted = read_accepted(state.folder, read_result(state.folder))
        assert accepted is not None
        assert accepted.run == f"toy/{sources[name].name}"
        assert accepted.changed == "optimizer lion.Lion (lion)"
        result = json.loads((state.folder / "result.json").read_bytes())
        assert result["hash"] == state.run.hash
        assert (state.folder / "metrics.jsonl").read_bytes() == (
            sources[name] / "metrics.jsonl"
        ).read_bytes()
    assert set(collect(lab.sweep, lab.runs).runs["accepted_code"]) == {"optimizer lion.Lion (lion)"}
    # The next command finds nothing to do.
    code, said = lab.finish()
    assert code == 0
    assert "2 of 2 runs finished" in said
    assert all(s.attempts == () for s in lab.states().values())

    # More iterations continue them, and the old code's part is still named, and not shared.
    shutil.rmtree(lab.runs / ".store" / "evaluations")
    for iterations in (12, 18):
        code, said = lab.finish("--set", f"iterations={iterations}")
        assert (code, said.count("starts from zero")) == (0, 0), said
        longer = load_sweep(lab.file, None, [f"iterations={iterations}"])
        assert set(collect(longer, lab.runs).runs["accepted_code"]) == {
            "optimizer lion.Lion (lion) (until iteration 6; the code of now made the rest)"
        }
    assert not list((lab.runs / ".store").glob("evaluations/*"))


def test_a_failed_run_whose_code_was_fixed_begins_anew(lab: Lab) -> None:
    code, _ = lab.finish(fake={"*": {"raise_at": 4}})
    assert code == 1
    old = contents(lab)
    write(lab.root, 2)
    code, said = lab.finish("--retry", "failed", "--accept-code-change")
    assert code == 0, said
    assert "copied from" not in said
    assert {path: content for path, content in contents(lab).items() if path in old} == old
    for name, state in lab.states().items():
        assert [attempt.began_at for attempt in state.attempts] == [0], name
        assert lab.iterations(name) == list(range(6))
        assert read_accepted(state.folder, None) is None


def test_a_run_of_an_earlier_version_is_other_code_too(lab: Lab) -> None:
    """Its hash had no code in it."""
    from mixgrpo.settings.identity import settings_hash

    lab.finish()
    for state in lab.states().values():
        settings = settings_hash(state.run.config)
        folder = state.folder.with_name(f"{state.run.name}-{settings}")
        shutil.move(state.folder.resolve(), folder)
        state.folder.unlink()
        (folder / "code.json").unlink()
        for name in ("config.yaml", "result.json"):
            text = (folder / name).read_text().replace(state.run.hash, settings)
            (folder / name).write_text(text)
        seal(folder)
    assert len(as_data(lab.observe())["of_other_code"]) == 2
    code, said = lab.finish("--accept-code-change")
    assert (code, said.count("copied from")) == (0, 2), said


def test_a_job_whose_code_changed_after_it_was_planned_refuses(lab: Lab) -> None:
    run = lab.sweep.runs[0]
    folder = lab.runs / "toy" / run.folder_name
    folder.mkdir(parents=True)
    job = make_job(folder, run.config, train="no_such_module:run", identity=run.hash)
    write(lab.root, 2)
    assert job.run(lambda: False) == "config"
    (attempt,) = read_attempts(folder)
    assert attempt.error is not None
    assert attempt.error.startswith("the code of optimizer lion.Lion, its weights or its prompts")
    assert run.hash in attempt.error
    assert config_hash(run.config) in attempt.error
    assert not (folder / "config.yaml").exists()


def test_a_report_says_which_runs_were_made_by_other_code(tmp_path: Path) -> None:
    sweep = make_sweep(intervals=(9, 15), seeds=3)
    write_runs(sweep, tmp_path)
    run = sweep.runs[0]
    folder = tmp_path / sweep.name / run.folder_name
    assert "other code" not in " ".join(missing(analyse(sweep, collect(sweep, tmp_path))))
    accepted = AcceptedCode(run="tau/x", hash="01234567", code={}, changed="reward red (red)")
    (folder / "accepted.json").write_text(accepted.model_dump_json())
    assert missing(analyse(sweep, collect(sweep, tmp_path))) == [
        "1 of 6 runs were made by other code than the sweep's is now, which was accepted "
        "(--accept-code-change): τ = 9 seed 0. What changed: reward red (red)."
    ]


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"run": "a/', b"[1]"])
def test_a_damaged_record_of_other_code_is_named_and_its_run_left_out(
    tmp_path: Path, content: bytes | None
) -> None:
    sweep = make_sweep(intervals=(9, 15), seeds=3)
    write_runs(sweep, tmp_path)
    run = sweep.runs[0]
    folder = tmp_path / sweep.name / run.folder_name
    accepted = AcceptedCode(run="tau/x", hash="01234567", code={}, changed="reward red (red)")
    text = accepted.model_dump_json().encode()
    result = json.loads((folder / "result.json").read_bytes())
    result["accepted"] = hashlib.sha256(text).hexdigest()
    (folder / "result.json").write_text(json.dumps(sealed(result)))
    (folder / "accepted.json").write_bytes(text)
    whole = digest(sweep, tmp_path, "tau.yaml")
    assert collect(sweep, tmp_path).left_out == []
    if content is None:
        (folder / "accepted.json").unlink()
    else:
        (folder / "accepted.json").write_bytes(content)
    assert digest(sweep, tmp_path, "tau.yaml") != whole
    results = collect(sweep, tmp_path)
    (text_of,) = results.left_out
    assert text_of.startswith(f"{run.name}: {folder / 'accepted.json'}: ")
    assert text_of.endswith("; run the sweep again with --rerun and this run's name")
    assert list(results.runs["state"]).count("lost") == 1
    assert len(results.finished) == len(sweep.runs) - 1
    assert look(sweep, run, tmp_path).unreadable == (text_of.partition(": ")[2],)


def test_accepting_goes_with_copying_alone(lab: Lab) -> None:
    code, said = lab.finish("--accept-code-change", "--no-share")
    assert code == 2
    assert "--accept-code-change: copies runs" in said
