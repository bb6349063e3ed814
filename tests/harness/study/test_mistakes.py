"""Mistakes in sweep and search files: all at once, each with line, key and fix; nothing takes all
memory or for ever; nothing is written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.searching.check import check_space
from harness.searching.file import load_search
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError
from mixgrpo.files.hub import check_local

HEAD = "name: t\nquestion: q\n"
GRID = "grid: {window.interval: [15, 25]}\nseeds: 2\n"
SPACE = "space:\n  window.interval: {low: 1, high: 9}\ntrials: 4\n"


def sweep_errors(tmp_path: Path, text: str) -> list[str]:
    return errors(tmp_path, text, load_sweep)


def search_errors(tmp_path: Path, text: str) -> list[str]:
    return errors(tmp_path, text, lambda file: check_space(load_search(file)))


def errors(tmp_path: Path, text: str, load: Callable[[Path], object]) -> list[str]:
    file = tmp_path / "t.yaml"
    file.write_text(HEAD + text)
    with pytest.raises(ConfigError) as raised:
        load(file)
    found = [str(one).replace(f"{tmp_path}/", "") for one in raised.value.errors]
    assert all("\n" not in one and len(one) < 400 for one in found)
    return found


def test_all_errors_of_a_sweep_are_said_at_once(tmp_path: Path) -> None:
    text = """\
trails: 3
set:
  windw.size: 3
  mem: 4
grid:
  optimizer.learning_rate: [1, 2]
  window.size: [1, two, 3.5]
arms:
  a: {batch_size: 3}
  b: {sampler: {steps: many, sheds: 3}}
seeds: -1
"""
    said = sweep_errors(tmp_path, text)
    assert [one.split(": ")[0] + ":" + one.split(": ")[1] for one in said] == [
        "t.yaml:3:trails",
        "t.yaml:5:windw.size",
        "t.yaml:6:mem",
        "t.yaml:8:optimizer.learning_rate",
        "t.yaml:9:window.size",
        "t.yaml:9:window.size",
        "t.yaml:11:batch_size",
        "t.yaml:12:sampler.steps",
        "t.yaml:12:sampler.sheds",
        "t.yaml:13:seeds",
    ]
    # What is found after the file's keys are right is said at once, too.
    more = GRID + "reference: nope\nmeasure: nope\nviews: [nope]\nprobes: {nope: {}}\npaper: nope\n"
    said = sweep_errors(tmp_path, more)
    assert [one.split(":")[1] for one in said] == ["5", "6", "7", "8", "9"]


def test_an_error_of_every_arm_is_said_once(tmp_path: Path) -> None:
    values = ", ".join(map(str, range(1, 60)))
    (said,) = sweep_errors(
        tmp_path, f"set: {{window.size: x}}\ngrid: {{window.interval: [{values}]}}\nseeds: 2\n"
    )
    assert said == "t.yaml:3: window.size: expected a valid integer, not 'x' (every arm)"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GRID + "lr: 1", 5, "did you mean optimizer.lr? Write it below `set:`"),
        (GRID + "window.size: 3", 5, "is a setting of the runs; write it below `set:`"),
        (GRID + "Name: t", 5, "Name: unknown key; did you mean name?"),
        (GRID.replace("seeds", "Seeds"), 4, "Seeds: unknown key; did you mean seeds?"),
        (GRID + "arms: {a: {LABEL: x}}", 5, "did you mean label?"),
        (GRID + "set: {slurm.time: 3}", 5, "did you mean time? Write it below `slurm:`"),
        (GRID + "slurm.time: 3", 5, "did you mean time? Write it below `slurm:`"),
        (GRID + "mem: 3", 5, "did you mean memory_gb? Write it below `slurm:`"),
        (GRID + "partition: a", 5, "Write it below `slurm:`"),
        (GRID + "baseline: a", 5, "did you mean reference?"),
        ("matrix: {window.size: [1, 2]}\nseeds: 2", 3, "did you mean grid?"),
        (GRID + "set: {views: [drift]}", 5, "is a key of the sweep file, not a setting"),
        ("grid:\n  window.size: [1, 2]\n  seeds: [1, 2]\nseeds: 2", 5, "indent it less"),
        (GRID + "set: {mem: 3}", 5, "did you mean memory_gb? Write it below `slurm:`"),
        ("grid: {sampler.eta: [.nan, 0.5]}\nseeds: 2", 3, "expected a finite number, not nan"),
        ("arms:\n  off: {}\nseeds: 1", 4, 'quote it: "off"'),
        ("arms:\n  1: {}\nseeds: 1", 4, 'quote it: "1"'),
        (GRID + "profiles:\n  null: {}", 6, 'quote it: "null"'),
    ],
)
def test_a_key_in_the_wrong_place_or_of_another_name(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    said = sweep_errors(tmp_path, text + "\n")
    assert [one for one in said if one.startswith(f"t.yaml:{line}: ") and words in one], said


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("grid:\nwindow.interval: [1, 2]\nseeds: 2", {4: "grid"}),
        ("set:\nwindow: {size: 3}\n" + GRID, {4: "set"}),
        ("slurm:\npartition: a\n" + GRID, {4: "slurm"}),
        ("arms:\n  a:\n  window.size: 2\n  window.stride: 3\nseeds: 2", {5: "a", 6: "a"}),
        ("arms:\n  a:\n  window: {size: 2}\nseeds: 2", {5: "a"}),
        ("arms:\n  a:\n  slurm: {gpus: 2}\nseeds: 2", {5: "a"}),
        ("arms:\na: {window.size: 2}\ncontrol: {}\nseeds: 2", {4: "arms", 5: "arms"}),
        ("arms:\na:\nwindow.size: 2\nseeds: 2", {4: "arms", 5: "a"}),
        (GRID + "profiles:\n  gpu:\n  set: {window.size: 3}", {7: "gpu"}),
        (GRID + "profiles:\n  gpu:\n    set:\n    window.size: 3", {8: "set"}),
        (GRID + "probes:\nhybrid:", {6: "probes"}),
        ("set:\nseed: 3\n" + GRID, {}),
        ("notes:\nfoo: 3\n" + GRID, {}),
        ("arms:\nsedes: 2", {}),
        ("arms:\n  a:\n  other: 2\nseeds: 2", {}),
    ],
)
def test_what_was_to_be_indented_below_an_empty_key(
    tmp_path: Path, text: str, found: dict[int, str]
) -> None:
    said = [one for one in sweep_errors(tmp_path, text + "\n") if "indent it below" in one]
    assert len(said) == len(found)
    for one, (line, key) in zip(said, found.items(), strict=True):
        assert one.startswith(f"t.yaml:{line}: ")
        assert one.endswith(f"stands beside `{key}:`, which is empty; indent it below `{key}:`")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("{low: 1, high: 9}", "{low: 1.0, high: 2.0}", 4, "low 1.0: expected a valid integer"),
        ("{low: 1, high: 9}", "{low: 1, high: 9, step: 3}", 4, "do not"),
        ("{low: 1, high: 9}", "{low: 1, high: 2, step: 0.5}", 4, "write a whole step"),
        ("{low: 1, high: 9}", "{low: 9, high: 1}", 4, "low 9 must be less than high 1"),
        ("{low: 1, high: 9}", "{low: 3, high: 3}", 4, "both 3, so there is nothing to search"),
        ("{low: 1, high: 9}", "{low: 0, high: 9}", 4, "low 0: expected greater than or equal to 1"),
        ("{low: 1, high: 9}", "{low: .nan, high: 9}", 4, "expected a finite number, not nan"),
        ("{low: 1, high: 9}", "{low: 1, high: .inf}", 4, "expected a finite number, not inf"),
        ("{low: 1, high: 9}", "{low: 1}", 4, "give low and high, or choices"),
        ("{low: 1, high: 9}", "{min: 1, max: 9}", 4, "min: unknown key; did you mean low?"),
        ("{low: 1, high: 9}", "[5]", 4, "has one choice, 5, so there is nothing to search"),
        ("{low: 1, high: 9}", "[5, 6, 5]", 4, "the choice 5 is given twice"),
        ("{low: 1, high: 9}", "[]", 4, "is empty"),
        ("{low: 1, high: 9}", "[5, often]", 4, "choice 'often': expected a valid integer"),
        ("{low: 1, high: 9}", "5", 4, "expected"),
        ("window.interval: {low: 1, high: 9}", "sampler.order: [1, 4]", 4, "expected 1, 2 or 3"),
        ("window.interval: {low: 1, high: 9}", "window.size: {low: 26, high: 40}", 3, "none of"),
        (
            "window.interval: {low: 1, high: 9}",
            "sampler.variant: [midpoint, heun]",
            4,
            "no setting of the space can be run with 'heun'",
        ),
        (
            "window.interval: {low: 1, high: 9}",
            "sampler.eta: {low: -1.0, high: 1.0}",
            4,
            "low -1.0: expected greater than 0",
        ),
        (
            "window.interval: {low: 1, high: 9}",
            "sampler.eta: {low: 0.70001, high: 0.70002}",
            4,
            "the same value in three digits",
        ),
        (
            "high: 9}",
            "high: 9, unless: {window.strategy: nope}}\n  window.strategy: [constant, random]",
            4,
            "'nope' is not in the range of window.strategy, constant, random",
        ),
        (
            "high: 9}",
            "high: 9, unless: {window.strategy: [frozen, random]}}\n"
            "  window.strategy: [frozen, random]",
            4,
            "none of 60 settings asks for it: `unless` excludes all of them",
        ),
        (
            "high: 9}\ntrials: 4",
            "high: 9, step: 2}\ntrials: 4\nenqueue: [{window.interval: 2}]",
            6,
            "2 is not in its range, 1 to 9 by 2",
        ),
        ("trials: 4", "trials: 0", 5, "expected greater than or equal to 1, not 0"),
        ("trials: 4", "trials: 1000000000", 5, "expected less than or equal to"),
        ("trials: 4", "trials: 4\nobjectives: [speed]", 6, "'speed' is none of 'reward'"),
        ("trials: 4", "trials: 4\nseeds: 1000000000", 6, "1,000,000,000 seeds are more than"),
        ("trials: 4", "trials: 20000\nseeds: 100", 5, "20,000 trials of 100 seeds are more than"),
        ("trials: 4", "n_trials: 4", 5, "did you mean trials?"),
        ("space:\n  ", "space:\n", 4, "is empty; indent it below `space:`"),
        ("trials: 4", "trials: 4\nSeeds: 2", 6, "Seeds: unknown key; did you mean seeds?"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    said = search_errors(tmp_path, SPACE.replace(old, new))
    assert [one for one in said if one.startswith(f"t.yaml:{line}: ") and words in one], said


def test_whole_bounds_of_a_fraction_are_a_range_of_fractions(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(HEAD + SPACE.replace("window.interval", "sampler.shift"))
    (one,) = load_search(file).space
    assert not one.whole
    assert one.has(2.5)
    file.write_text(HEAD + "space: {health.drift: [true, false]}\ntrials: 2\n")
    assert load_search(file).space[0].choices == (True, False)


ATTACKS = {
    "grid: {window.interval: [15, 25]}\nseeds: 1000000000\n": ":4: seeds: 1,000,000,000 seeds are",
    "grid: {window.interval: [15, 25]}\nseeds: [SEEDS]\n": ":4: seeds: 60,000 seeds are more than",
    "grid: {window.interval: [N], rollout.prompts: [N]}\nseeds: 1\n": ":3: grid: makes 1,000,000",
    "arms: {ARMS}\ngrid: {window.interval: [N]}\nseeds: 1\n": ":4: grid: makes 1,000,000 arms",
    "set: {iterations: 10000000000}\n" + GRID: ":3: iterations: expected less than or equal to",
    "grid: {rollout.group_size: [1000000000, 12]}\nseeds: 2\n": ":3: rollout.group_size: expected",
    "grid: {sampler.steps: [1000000000, 12]}\nseeds: 2\n": ":3: sampler.steps: expected less than",
    "set: {evaluation.images_per_prompt: 1000000000}\n" + GRID: ":3: evaluation.images_per",
    "set: {model.height: 1000000000, model.width: 1000000000}\n" + GRID: ":3: model.height: ",
    "set: {iterations: DIGITS}\n" + GRID: ":3: a number of 1,000,000 digits is too long",
}
LONG = """\
set: {iterations: 1000000000}
arms:
  a: {}
  b: {window.strategy: random}
  c: {window.at_end: restart}
  d: {window.strategy: linear-decay, window.at_end: released}
seeds: 2
"""


def test_no_file_takes_all_memory_or_for_ever(tmp_path: Path) -> None:
    long_lists = {
        "SEEDS": ", ".join(map(str, range(60_000))),
        "N": ", ".join(map(str, range(1, 1001))),
        "ARMS": ", ".join(f"a{k}: {{window.size: {k % 20 + 1}}}" for k in range(1000)),
        "DIGITS": "9" * 1_000_000,
    }
    for k, text in enumerate([*ATTACKS, LONG]):
        for word, value in long_lists.items():
            text = text.replace(word, value)
        (tmp_path / f"{k:02}.yaml").write_text(HEAD + text)
    code = f"""\
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from harness.launching.plan import describe
from harness.study.load import load_sweep
from harness.runs.state import look_at_all
from mixgrpo.errors import ConfigError
for file in sorted(Path({str(tmp_path)!r}).glob("*.yaml")):
    begin = time.process_time()
    try:
        sweep = load_sweep(file)
        said = describe(sweep, look_at_all(sweep, Path("none")), 1).splitlines()[0]
    except ConfigError as error:
        said = str(error)
    assert time.process_time() - begin < 8, file
    print(said[:200])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) < 300 * 1024, peak.strip())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *refused, planned, little = done.stdout.splitlines()
    assert len(refused) == len(ATTACKS)
    for said, words in zip(refused, ATTACKS.values(), strict=True):
        assert f".yaml{words}" in said
    assert planned == "t: 4 arms x 2 seeds = 8 runs; reference a, measure composition"
    assert little.startswith("True"), little


@pytest.mark.parametrize("module", ["harness.sweep", "harness.search"])
def test_a_refused_file_is_a_line_each_with_code_2_and_writes_nothing(
    tmp_path: Path, module: str
) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        HEAD + "grid: {window.size: [1]}\nspace: {window.size: [1]}\nsedes: 010\non: 1\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", module, str(file)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [f"{file}:5", f"{file}:6"]
    assert all(line.startswith("error: ") for line in lines)
    assert list(tmp_path.iterdir()) == [file]


# ---- Files of somebody else, names of arms, long names


TRUSTED = {
    "sweep": (load_sweep, GRID),
    "search": (load_search, SPACE),
}


@pytest.mark.parametrize("kind", TRUSTED)
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("slurm.setup", "slurm: {setup: ['rm -rf ~']}\n"),
        ("slurm.python", "slurm: {python: ./their-python}\n"),
        ("slurm.sbatch", "slurm: {sbatch: {prolog: x}}\n"),
        ("profiles.a.slurm.setup", "profiles: {a: {slurm: {setup: ['rm -rf ~']}}}\n"),
    ],
)
def test_what_jobs_run_is_not_taken_from_somebody_else_s_file(
    kind: str, key: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, rest = TRUSTED[kind]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    theirs, own = tmp_path / "t.yaml", tmp_path / "here" / "t.yaml"
    for file in (theirs, own):
        file.write_text(HEAD + rest + text)
    with pytest.raises(ConfigError, match=rf"t.yaml:[0-9]+: {key}: names .* add --trust"):
        load(theirs, trust=False)
    load(theirs, trust=True)
    load(own, trust=False)
    theirs.write_text(HEAD + rest + "slurm: {partition: gpu, time: 60, gpus: 1}\n")
    load(theirs, trust=False)


def test_an_arm_s_own_slurm_is_not_taken_from_somebody_else_s_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arms = "arms: {a: {window.interval: 3, slurm: {setup: [id]}}, b: {window.interval: 4}}\n"
    (tmp_path / "t.yaml").write_text(HEAD + arms + "seeds: 2\n")
    with pytest.raises(ConfigError, match=r"t\.yaml:3: arms\.a\.slurm\.setup: names"):
        load_sweep(tmp_path / "t.yaml", trust=False)


def test_an_arm_is_not_called_as_a_run_of_another_is(tmp_path: Path) -> None:
    arms = "arms:\n  x: {window.interval: 3}\n  x-seed1: {window.interval: 4}\n"
    said = sweep_errors(tmp_path, arms + "seeds: 2\n")
    assert said == [
        "t.yaml:5: arms.x-seed1: the arm x-seed1 is called as the run of arm x with seed 1 is; "
        "give it another name"
    ]
    (tmp_path / "t.yaml").write_text(HEAD + arms + "seeds: 1\n")  # there is no such run
    load_sweep(tmp_path / "t.yaml")


@pytest.mark.parametrize("module", ["harness.sweep", "harness.status", "harness.search"])
@pytest.mark.parametrize("words", [["{}.yaml"], ["t.yaml", "--runs", "{}"]])
def test_a_name_that_is_too_long_is_the_user_s_mistake(
    module: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(HEAD + (SPACE if module == "harness.search" else GRID))
    asked = [word.replace("{}", "x" * 300) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", module, *asked, *(["--plan"] if module != "harness.status" else [])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "File name too long" in done.stderr or "shorter name" in done.stderr


def test_weights_of_a_name_that_is_too_long_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file or folder"):
        check_local(f"/tmp/{'x' * 300}", "model.checkpoint")
