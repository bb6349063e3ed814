"""Measurements on finished runs: kept whole, never reused for something else, reported."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness import probe
from harness.analysis.analyse import analyse
from harness.analysis.measurements import gather
from harness.analysis.results import collect
from harness.analysis.settings import is_setting
from harness.probing import workers
from harness.probing.tasks import Task, read_probes, tasks
from harness.probing.workers import measure_missing
from harness.reporting.views.hybrid import hybrid
from harness.reporting.views.solver_error import solver_error
from harness.reporting.write import write_report
from harness.runs import environment
from harness.stats import exponential, mean_interval
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from harness.text import interval
from mixgrpo import train
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.records import DamagedFileError
from mixgrpo.settings.identity import config_hash
from tests.mixgrpo import toy

from .synthetic import make_sweep, write_runs

DEADLY = "tests.harness.test_probe:Deadly"


class Deadly:
    """A reward that takes its process with it."""

    name = "deadly"

    def score(self, images: Any, prompts: list[str]) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def sweep_text(**changes: Any) -> str:
    base = toy.settings(rewards={"classes": {"deadly": DEADLY}})
    del base["seed"]
    said = {
        "name": "toy",
        "question": "Does it work?",
        "set": base | {"iterations": 2},
        "grid": {"window.interval": [1, 2]},
        "probes": {"hybrid": {"p_mix": [0.0, 1.0]}},
        "seeds": 2,
    }
    return yaml.safe_dump(said | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_site: Path) -> Path:
    """Run folders of the toy sweep, finished; copied by tests that change them."""
    place = tmp_path_factory.mktemp("trained")
    (place / "toy.yaml").write_text(sweep_text())
    for run in load_sweep(place / "toy.yaml").runs:
        assert train.run(run.config, place / "runs" / "toy" / run.folder_name) == "finished"
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path, toy_site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "place")
    for name, value in toy.environment(toy_site).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path / "place"


def sweep_of(place: Path, **changes: Any) -> Sweep:
    if changes:
        (place / "toy.yaml").write_text(sweep_text(**changes))
    return load_sweep(place / "toy.yaml")


def files(place: Path) -> dict[str, int]:
    """Time of change of everything below probes/ by path."""
    return {str(p.relative_to(place)): p.stat().st_mtime_ns for p in place.rglob("probes/*")}


def measured(place: Path, sweep: Sweep, jobs: int = 1) -> tuple[list[str], list[str]]:
    said: list[str] = []
    return measure_missing(sweep, place / "runs", jobs, said.append), said


def test_what_is_missing_is_measured_once_and_agrees_with_the_run(place: Path) -> None:
    sweep = sweep_of(place)
    failed, said = measured(place, sweep, jobs=2)
    assert failed == []
    assert len(said) == 4
    assert re.fullmatch(r"interval=\d-seed\d: hybrid: measured in .* \(4 of 4\)", said[-1])
    before = files(place)
    assert len(before) == 4
    assert measured(place, sweep) == ([], [])
    assert files(place) == before
    rows = read_probes(sweep, place / "runs")
    assert rows is not None
    runs = collect(sweep, place / "runs").runs
    ends = rows[rows["reward"] == "brightness"].pivot(
        index=["arm", "seed"], columns="p_mix", values="mean"
    )
    expected = runs.set_index(["arm", "seed"])[["before_brightness", "after_brightness"]]
    expected = expected.loc[ends.index]
    assert ends.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-6)


def test_other_options_other_weights_and_damaged_files_are_measured_again(place: Path) -> None:
    sweep = sweep_of(place)
    (first, *_) = tasks(sweep, place / "runs")
    rows = [
        {"p_mix": p, "trained_steps": 2, "reward": reward, "role": role, "mean": p, "sd": 0.1}
        | {"images": 8}
        for p in (0.0, 1.0)
        for reward, role in (("brightness", "trained"), ("contrast", "held out"))
    ]
    first.write(rows, 0.1)
    assert first.read() == rows
    assert replace(first, options={**first.options, "p_mix": [0.5]}).read() is None
    assert replace(first, run=replace(first.run, hash="00000000")).read() is None
    manifest = first.folder / "checkpoints/000002/manifest.json"
    kept = manifest.read_text()
    said = json.loads(kept)
    said["files"]["average.safetensors"] = "0" * 64
    manifest.write_text(json.dumps(said))
    assert first.read() is None
    manifest.write_text(kept)
    assert first.read() is not None
    shutil.rmtree(first.folder / "checkpoints")  # to save space: the weights are no others
    assert first.read() == rows
    first.file.write_bytes(first.file.read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match="is not whole JSON"):
        first.read()
    assert first.is_missing
    damaged: list[str] = []
    assert read_probes(sweep, place / "runs", damaged) is None
    assert len(damaged) == 1


def test_a_run_that_fails_is_one_line_and_the_others_are_measured(place: Path) -> None:
    sweep = sweep_of(place)
    broken = tasks(sweep, place / "runs")[0]
    weights = broken.folder / "checkpoints/000002/average.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = subprocess.run(
        [sys.executable, "-m", "harness.probe", "toy.yaml", "--jobs", "2"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {broken.run.name}: hybrid: ")
    assert "000002: corrupt checkpoint (average.safetensors" in line
    assert done.stdout.endswith("3 of 4 measurements exist\n")
    assert len(files(place)) == 3
    # What it advises works: the run makes its last checkpoint again.
    subprocess.run(line.split("`")[1], shell=True, cwd=place, check=True)
    with pytest.warns(UserWarning, match="corrupt checkpoint"):
        assert train.run(broken.run.config, broken.folder) == "finished"
    assert measure_missing(sweep, place / "runs", jobs=1) == []


EXTRA = "class Extra:\n    name = 'extra'\n    def score(self, images, prompts):\n        return "


def test_code_that_only_a_probe_uses_is_part_of_its_measurement(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run whose own file lacks that class, as one that another sweep made, is measured."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    (place / "extra_of_probe.py").write_text(f"{EXTRA}images.mean((1, 2, 3))\n")
    base = toy.settings(rewards={"classes": {"deadly": DEADLY, "extra": "extra_of_probe:Extra"}})
    del base["seed"]
    said = {"set": base | {"iterations": 2}, "seeds": 1, "grid": {"window.interval": [1]}}
    sweep = sweep_of(place, probes={"hybrid": {"p_mix": [1.0], "rewards": ["extra"]}}, **said)
    (task,) = tasks(sweep, place / "runs")
    paths = f"{place}{os.pathsep}{os.environ['PYTHONPATH']}"

    def probe() -> str:
        command = [sys.executable, "-m", "harness.probe", "toy.yaml", "--jobs", "1"]
        done = subprocess.run(
            command,
            cwd=place,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = task.read()
        assert rows is not None
        return str([row["mean"] for row in rows if row["reward"] == "extra"])

    first = probe()
    (place / "extra_of_probe.py").write_text(f"{EXTRA}-images.mean((1, 2, 3))\n")
    assert task.read() is None
    assert probe() != first
    # Without the code, as in a fresh clone, what was measured is read.
    (place / "extra_of_probe.py").unlink()
    assert task.read() is not None


def test_a_process_that_dies_costs_its_own_measurement_only(place: Path) -> None:
    sweep = sweep_of(place, probes={"hybrid": {"rewards": ["deadly"]}, "solver-error": {}})
    sweep = replace(sweep, runs=sweep.runs[:1])
    failed, _ = measured(place, sweep)
    assert len(failed) == 1
    assert "hybrid: its process ended unexpectedly (signal 9)" in failed[0]
    (kept,) = files(place)
    assert kept.endswith("probes/solver-error.json")


def test_a_killed_command_goes_on_where_it_was(place: Path) -> None:
    sweep = sweep_of(place)
    command = [sys.executable, "-m", "harness.probe", "toy.yaml", "--jobs", "1"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL) as begun:
        begin = time.monotonic()
        while not any(name.endswith(".json") for name in files(place)):
            assert begun.poll() is None
            assert time.monotonic() - begin < 90
            time.sleep(0.001)
        begun.kill()
    time.sleep(0.5)  # its process finishes the task in hand
    before = files(place)
    assert measured(place, sweep)[0] == []
    after = files(place)
    assert len(after) == 4
    assert before.items() <= after.items()
    assert all(task.read() for task in tasks(sweep, place / "runs"))


def test_a_worker_has_one_gpu_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    given = workers._Worker("3").environment
    assert given["CUDA_VISIBLE_DEVICES"] == "3"
    assert {given[name] for name in environment.THREAD_VARIABLES} == {"1"}


def test_a_sweep_measures_when_its_runs_have_ended(place: Path) -> None:
    (place / "toy.yaml").write_text(sweep_text(seeds=1))
    command = [sys.executable, "-m", "harness.sweep", "toy.yaml"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "hybrid: measured in" in done.stdout
    rows = pd.read_parquet(place / "reports/toy/probes.parquet")
    assert set(rows["p_mix"]) == {0.0, 1.0}
    assert set(rows["seed"]) == {0}


def test_on_a_cluster_the_sweep_says_the_command(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = replace(sweep_of(place), profile="full", overrides=("iterations=2",))
    assert workers.after_training(sweep, place / "runs", None, on_slurm=True) == []
    assert capsys.readouterr().out == (
        "4 measurements are missing: srun --gpus=1 python -m harness.probe "
        f"{place}/toy.yaml --profile full --set iterations=2 --runs {place}/runs\n"
    )
    assert files(place) == {}


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ({"hybird": {}}, r"probes\.hybird: no such probe; did you mean hybrid\?"),
        ({"hybrid": {"pmix": [1.0]}}, r"hybrid\.pmix: unknown option; did you mean p_mix\?"),
        ({"hybrid": {"p_mix": [0.5, 1.2]}}, r"hybrid\.p_mix\.1: .* less than or equal to 1, not 1"),
        ({"hybrid": {"p_mix": []}}, r"hybrid\.p_mix: "),
        ({"solver-error": {"orders": ["4"]}}, r"orders\.0: expected '1', '2 midpoint'"),
        ({"solver-error": {"fine": 1}}, r"solver-error\.fine: .* 2, not 1"),
    ],
)
def test_a_mistake_below_probes_is_one_line(
    probes: Any, expected: str, tmp_path: Path, toy_site: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"toy\.yaml:\d+: .*{expected}"):
        sweep_of(tmp_path, probes=probes)


def test_a_sweep_without_probes_says_what_to_write(place: Path) -> None:
    sweep_of(place, probes={})
    with pytest.raises(ConfigError, match="probes: names none"):
        probe.main(place / "toy.yaml", runs=place / "runs", trust=True)


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, harness.probe; print({'torch', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- reported ------------------------------------------------------------------------------------

P_MIX = (0.0, 0.4, 0.8, 1.0)
OPTIONS = {"hybrid": {"p_mix": list(P_MIX), "rewards": []}, "solver-error": {"fine": 2}}


def known_sweep() -> Sweep:
    """Arms with known truth: in one 0.8 is better than 1 by 0.05, in the other by nothing."""
    made = make_sweep(
        intervals=(12, 15),
        seeds=5,
        views=("hybrid", "solver-error"),
        probes=OPTIONS,
    )
    runs = []
    for run in made.runs:
        rewards = run.config.rewards.model_copy(update={"held_out": ("strict",)})
        config = run.config.model_copy(update={"rewards": rewards})
        runs.append(replace(run, config=config, hash=config_hash(config)))
    return replace(made, runs=tuple(runs))


def write_probes(sweep: Sweep, runs: Path) -> None:
    for task in tasks(sweep, runs):
        bump = 0.05 if task.run.arm == "interval=12" else 0.0
        rows: list[dict[str, Any]] = []
        if task.name == "hybrid":
            for p in P_MIX:
                wobble = 0.002 * ((task.run.seed * 7 + int(10 * p) * 3) % 5 - 2)
                for reward, role in (("composition", "trained"), ("strict", "held out")):
                    mean = 0.5 + 0.1 * min(p, 0.8) + bump * (p == 0.8) + wobble
                    rows.append(
                        {
                            **{"p_mix": p, "trained_steps": round(25 * p), "reward": reward},
                            **{"role": role, "mean": mean, "sd": 0.1, "images": 8},
                        }
                    )
        else:
            rows = solver_rows(task)
        task.write(rows, 0.1)


def solver_rows(task: Task) -> list[dict[str, Any]]:
    rows = []
    for model in ("trained", "base"):
        row = {"model": model, "place": "reference", "order": "", "ratio": 1.0, "history": ""}
        rows.append({**row, "start": -1, "saved": 0, "window": "ode", "at": "image", "error": 1e-5})
        for place in ("before", "after"):
            for order in ("1", "3"):
                for ratio in (0.4, 1.0):
                    for history in ("keep", "restart"):
                        for window in ("ode", "sde"):
                            error = (0.04 if place == "before" else 0.02) / int(order) / ratio
                            if history == "restart":
                                if place == "before" or order == "1":
                                    continue
                                error /= 2 + 0.01 * (task.run.seed % 2)
                            rows.append(
                                {
                                    **{"model": model, "place": place, "order": order},
                                    **{"ratio": ratio, "history": history, "start": 5},
                                    **{"saved": round(10 * (1 - ratio)), "window": window},
                                    "at": "image",
                                    "error": error * (1 + 0.01 * task.run.seed),
                                }
                            )
    return [{**row, "images": 4} for row in rows]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("known")
    write_runs(known_sweep(), runs)
    write_probes(known_sweep(), runs)
    return runs


def _set(**values: Any) -> Callable[[list[Any]], Any]:
    return lambda rows: rows[1].update(values)


SPOILT: dict[str, Callable[[list[Any]], Any]] = {
    "null": _set(images=None),
    "text": _set(images="abc"),
    "not finite": _set(mean=math.nan, error=math.nan),
    "of 300 digits": _set(mean=1e308, error=1e308),
    "of another type": _set(reward=[], at=[]),
    "none": lambda rows: rows.clear(),
    "a list of nothing": lambda rows: rows.append({}),
    "no rows": lambda rows: rows.append(1),
    "twice": lambda rows: rows.append(rows[0]),
    "one lost": lambda rows: rows.pop(),
    "half": lambda rows: rows.__delitem__(slice(len(rows) // 2, None)),
    "a column lost": lambda rows: rows[1].pop("images"),
    "other numbers": _set(mean=0.3, error=0.3),
}


@pytest.mark.parametrize("name", ["hybrid", "solver-error"])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_rows_that_were_not_measured_are_named_left_out_and_measured_again(
    known: Path, tmp_path: Path, name: str, spoilt: str
) -> None:
    shutil.copytree(known, tmp_path / "runs")
    sweep = known_sweep()
    task = next(task for task in tasks(sweep, tmp_path / "runs") if task.name == name)
    kept = json.loads(task.file.read_text())
    sha256 = kept.pop("sha256")
    task.file.write_text(json.dumps(kept))  # as earlier versions wrote it
    assert not task.is_missing
    SPOILT[spoilt](kept["rows"])
    if spoilt == "other numbers":  # which only the digest tells
        kept["sha256"] = sha256
    task.file.write_text(json.dumps(kept))
    assert task.is_missing
    (text,) = gather(sweep, tmp_path / "runs", tmp_path / "reports").results.left_out
    assert text.startswith(f"{task.run.name}: {task.file}: ")
    assert text.endswith("; harness.probe measures it again")


def test_the_view_of_p_mix_finds_what_is_there_and_nothing_else(known: Path) -> None:
    sweep = known_sweep()
    results = collect(sweep, known)
    view = hybrid(analyse(sweep, results), results, read_probes(sweep, known))
    assert view is not None
    choice, highest, held_out = view.sentences
    assert choice.startswith("In composition, p_mix = 80 %")
    assert "better in τ = 12 (+0.0" in choice
    assert "not shown to differ in τ = 15" in choice
    assert re.search(r"; the smallest detectable difference is 0\.\d+\.$", choice)
    assert "highest at p_mix = 80 % in τ = 12 (0.6" in highest
    assert "seen and not tested" in highest
    assert held_out.startswith("In strict, p_mix = 80 %")
    assert re.fullmatch(
        r"With p_mix = 80 %, the paper's choice, instead of the trained model alone: composition "
        r"better in 1 of 2 arms \(means \+0\.0\d\d\), strict .*\.",
        view.brief,
    )
    means, differences, published = view.tables
    assert [row[1] for row in means.rows] == ["0 %", "40 %", "80 %", "100 %"] * 2
    rows = {row[:2]: row[2] for row in differences.rows}
    # The question's own comparison; the base model alone is no choice and in no difference.
    assert [name for arm, name in rows if arm == "τ = 12"] == [
        "80 % minus 100 %, tested",
        "40 % minus 100 %",
        "40 % minus 80 %",
    ]
    probes = read_probes(sweep, known)
    assert probes is not None
    own = probes[(probes["arm"] == "interval=12") & (probes["reward"] == "composition")]
    wide = own.pivot(index="seed", columns="p_mix", values="mean")
    tested = mean_interval(list(wide[0.8] - wide[1.0]), 1 - 0.05 / 2)
    alone = mean_interval(list(wide[0.4] - wide[1.0]))
    assert rows["τ = 12", "80 % minus 100 %, tested"] == interval(tested, signed=True)
    assert rows["τ = 12", "40 % minus 100 %"] == interval(alone, signed=True)
    assert published.rows[-1] == ("100 %", "0.369", "0.238", "1.607", "3.378")


def test_the_view_of_the_solver_says_the_means_that_were_measured(known: Path) -> None:
    sweep = known_sweep()
    results = collect(sweep, known)
    view = solver_error(analyse(sweep, results), results, read_probes(sweep, known))
    assert view is not None
    # 0.04 / 0.4 over seeds 0 to 4, each 1 % more; order 3 has a third of it with every seed.
    answer, ode, *_ = view.sentences
    assert answer.startswith("With 40 % of the steps before the window left, the final latents lie")
    assert "off those to which the ODE leads there by 0.1020 [" in answer
    assert "0.0340 [" in answer
    assert "by order 3 (times 0.33 (every seed) of order 1" in answer
    assert "trained so" not in answer
    probes = read_probes(sweep, known)
    assert probes is not None
    own = probes[(probes["at"] == "image") & (probes["model"] == "trained")]
    own = own[(own["place"] == "before") & (own["window"] == "sde")]
    errors = own.groupby(["order", "ratio", "seed"])["error"].mean()
    logs = [math.log(errors["1", 0.4, s] / errors["1", 1.0, s]) for s in range(5)]
    first = exponential(mean_interval(logs, 1 - 0.05 / 2))
    assert view.brief.startswith(
        "With 40 % of the steps before the window left, the final latents' error is that of all "
        f"steps by Euler times {interval(first, 2)} by order 1 and "
    )
    assert "trained so" not in view.brief
    assert "before it, 6 evaluations saved: 0.1020 [" in ode.replace("6.0 ", "6 ")
    kept = next(s for s in view.sentences if "begins anew" in s)
    # Twice the error, and a little more with every other seed.
    assert re.search(r"begins anew times 2\.00 \[\S+, 2\.01\] by order 3", kept)
    assert hybrid(analyse(sweep, results), results, None) is None
    assert solver_error(analyse(sweep, results), results, None) is None


def test_what_training_lost_before_the_window_is_the_sweeps_own_comparison(
    known: Path, tmp_path: Path
) -> None:
    (tmp_path / "pre.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "pre",
                "question": "May they be thinned out?",
                "set": {"iterations": 24, "sampler": {"tail_ratio": 0.4}},
                "grid": {"sampler.order": [1, 2], "sampler.head_ratio": [1.0, 0.4]},
                "within": "sampler.order",
                "reference": {"sampler.head_ratio": 1.0},
                "views": ["solver-error"],
                "seeds": 5,
            }
        )
    )
    sweep = load_sweep(tmp_path / "pre.yaml")
    thin = [arm.name for arm in sweep.arms if arm.settings["sampler.head_ratio"] == 0.4]
    write_runs(sweep, tmp_path / "runs", {thin[0]: -0.3}, sd=0.005)
    results = collect(sweep, tmp_path / "runs")
    analysis = analyse(sweep, results)
    view = solver_error(analysis, results, read_probes(known_sweep(), known))
    assert view is not None
    answer = view.sentences[0]
    assert answer.startswith("With 40 % of the steps before the window left")
    assert "; trained so, composition differs from that of" in answer
    labels = [analysis.by_name(name).arm.label for name in thin]
    assert f"; trained so, composition is worse in {labels[0]}; " in view.brief
    saved = re.search(r"; (\d+\.\d) % of a run's evaluations are saved at most", view.brief)
    assert saved is not None
    compared = {c.arm: c for c in analysis.compared}
    assert [row[0] for row in view.tables[1].rows] == labels
    for name, row in zip(thin, view.tables[1].rows, strict=True):
        assert row[2] == interval(compared[name].simultaneous, signed=True)
        assert row[4] == compared[name].verdict
        assert f"{row[2]} in {row[0]} ({row[4]}; smallest detectable difference {row[3]})" in answer
    assert [row[4] for row in view.tables[1].rows] == ["worse", "equal"]


def test_a_fresh_clone_reads_the_probes_back_and_writes_the_same_report(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.reporting.figures.DPI", 40)
    monkeypatch.setattr(
        "harness.reporting.figures.draw", lambda *_: []
    )  # the usual ones take seconds
    sweep = known_sweep()
    page = write_report(sweep, known, tmp_path / "reports")
    folder = page.parent
    contents = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {Path("probes.parquet"), Path("figures/hybrid.png")} <= set(contents)
    clone = tmp_path / "clone"
    for name in ("runs", "metrics", "evals", "probes"):
        (clone / sweep.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{name}.parquet", clone / sweep.name)
    shutil.copy(folder / "made.json", clone / sweep.name)
    shutil.copytree(folder / "samples", clone / sweep.name / "samples")
    write_report(sweep, tmp_path / "none", clone)
    again = {
        p.relative_to(clone / sweep.name): p.read_bytes()
        for p in (clone / sweep.name).rglob("*")
        if p.is_file()
    }
    assert again == contents
    kept = pd.read_parquet(folder / "probes.parquet")
    settings = [column for column in kept.columns if is_setting(column)]
    assert settings == ["window.interval"]
    pd.testing.assert_frame_equal(kept.drop(columns=settings), read_probes(sweep, known))
    spoilt = pd.read_parquet(clone / sweep.name / "probes.parquet")
    for frame in (spoilt.iloc[1:], pd.concat([spoilt, spoilt.iloc[:1]]), spoilt.assign(mean="x")):
        frame.to_parquet(clone / sweep.name / "probes.parquet", index=False)
        with pytest.raises(RunError, match=r"probes\.parquet: interval=12-seed0: hybrid: "):
            gather(sweep, tmp_path / "none", clone / sweep.name)
    spoilt.to_parquet(clone / sweep.name / "probes.parquet", index=False)
    other = replace(sweep, probes={"hybrid": {"p_mix": [0.5], "rewards": []}})
    with pytest.raises(ConfigError, match="measured with other options"):
        gather(other, tmp_path / "none", clone / sweep.name)
    assert gather(replace(sweep, probes={}), tmp_path / "none", clone / sweep.name).probes is None


def test_a_new_measurement_makes_a_new_report(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.reporting import unchanged

    sweep = known_sweep()
    shutil.copytree(known, tmp_path / "runs")
    before = unchanged.digest(sweep, tmp_path / "runs", "f")
    assert unchanged.digest(sweep, tmp_path / "runs", "f") == before
    task = tasks(sweep, tmp_path / "runs")[0]
    task.write([], 0.1)
    assert unchanged.digest(sweep, tmp_path / "runs", "f") != before
