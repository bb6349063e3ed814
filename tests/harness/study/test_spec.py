"""Sweep files: what they mean, and one clear error for everything that can be wrong in them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.launching.plan import describe
from harness.runs.state import look_at_all
from harness.study.load import known_folders, load_sweep, profile_names
from harness.study.spec import only, same_schedules
from mixgrpo.errors import ConfigError
from mixgrpo.settings.configfile import load_config
from mixgrpo.settings.identity import config_hash

SWEEPS = Path(__file__).parents[3] / "sweeps"

BASE = """\
iterations: 300
sampler: {steps: 25}
window: {size: 4, interval: 25}
"""


def sweep_file(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(BASE)
    file = folder / "sweep.yaml"
    file.write_text("name: tau\nquestion: Which?\nbase: base.yaml\n" + text)
    return file


def message(folder: Path, text: str, profile: str | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load_sweep(sweep_file(folder, text), profile)
    found = str(error.value)
    assert "\n" not in found
    return found.replace(str(folder) + "/", "")


# ---- meaning


def test_a_grid_makes_one_arm_per_value_and_one_run_per_seed(tmp_path: Path) -> None:
    text = "grid: {window.interval: [15, 25]}\nseeds: 3\nreference: {window.interval: 25}\n"
    sweep = load_sweep(sweep_file(tmp_path, text))
    assert [(a.name, a.label, a.settings) for a in sweep.arms] == [
        ("interval=15", "τ = 15", {"window.interval": 15}),
        ("interval=25", "τ = 25", {"window.interval": 25}),
    ]
    assert sweep.reference == "interval=25"
    assert sweep.measure == "composition"
    assert sweep.seeds == (0, 1, 2)
    assert [(r.arm, r.seed) for r in sweep.runs] == [
        (arm, seed) for seed in (0, 1, 2) for arm in ("interval=15", "interval=25")
    ]
    assert all(r.config.seed == r.seed for r in sweep.runs)
    assert sweep.runs[0].config.window.interval == 15
    assert len({r.folder_name for r in sweep.runs}) == 6
    assert sweep.runs[0].folder_name == f"interval=15-seed0-{sweep.runs[0].hash}"


def test_a_grid_of_two_keys_is_their_product(tmp_path: Path) -> None:
    text = "grid: {window.interval: [15, 25], window.size: [2, 4]}\nseeds: [7]\n"
    sweep = load_sweep(sweep_file(tmp_path, text))
    assert [a.name for a in sweep.arms] == [
        "interval=15,size=2",
        "interval=15,size=4",
        "interval=25,size=2",
        "interval=25,size=4",
    ]
    assert sweep.arms[1].label == "τ = 15 · w = 4"
    assert sweep.seeds == (7,)


def test_arms_have_labels_and_settings_dotted_or_nested(tmp_path: Path) -> None:
    text = """\
arms:
  slide: {}
  frozen: {label: Frozen window, window: {strategy: frozen}, window.size: 2}
seeds: 1
reference: frozen
"""
    sweep = load_sweep(sweep_file(tmp_path, text))
    assert [(a.name, a.label) for a in sweep.arms] == [
        ("slide", "slide"),
        ("frozen", "Frozen window"),
    ]
    assert sweep.arms[1].settings == {"window.strategy": "frozen", "window.size": 2}
    assert sweep.reference == "frozen"


PRESETS = """\
arms:
  slide: {}
  flash: {base: presets/flash.yaml}
  quick: {base: presets/flash.yaml, label: Quick, window.size: 2}
seeds: 1
"""


def presets(folder: Path) -> None:
    (folder / "presets").mkdir()
    (folder / "presets" / "deep.yaml").write_text("iterations: 90\nsampler: {eta: 0.3}\n")
    (folder / "presets" / "flash.yaml").write_text(
        "base: deep.yaml\nsampler: {tail_ratio: 0.4, order: 2}\nwindow: {interval: 20}\n"
    )


def test_an_arm_stands_on_a_base_of_its_own(tmp_path: Path) -> None:
    presets(tmp_path)
    file = sweep_file(tmp_path, "set: {rollout.prompts: 3}\n" + PRESETS)
    sweep = load_sweep(file)
    assert [(a.name, a.label, a.base) for a in sweep.arms] == [
        ("slide", "slide", None),
        ("flash", "flash", "presets/flash.yaml"),
        ("quick", "Quick", "presets/flash.yaml"),
    ]
    slide, flash, quick = (run.config for run in sweep.runs)
    # Its chain of bases stands in for the sweep's: nothing of base.yaml is left.
    assert (slide.iterations, flash.iterations, quick.iterations) == (300, 90, 90)
    assert (slide.sampler.eta, flash.sampler.eta) == (0.7, 0.3)
    assert (flash.sampler.order, flash.window.interval, flash.window.size) == (2, 20, 4)
    assert quick.window.size == 2
    assert [c.rollout.prompts for c in (slide, flash, quick)] == [3, 3, 3]
    alone = load_config(tmp_path / "presets" / "flash.yaml", ["rollout.prompts=3"])
    assert sweep.runs[1].hash == config_hash(alone)
    assert sweep.runs[1].folder_name == f"flash-seed0-{config_hash(alone)}"


def test_a_profile_lies_on_the_base_of_an_arm_and_below_its_settings(tmp_path: Path) -> None:
    presets(tmp_path)
    profile = "profiles:\n  small: {base: base.yaml, set: {window: {size: 3, interval: 7}}}\n"
    sweep = load_sweep(sweep_file(tmp_path, "set: {window.interval: 9}\n" + PRESETS + profile))
    windows = [(run.config.window.size, run.config.window.interval) for run in sweep.runs]
    assert windows == [(3, 7), (3, 7), (2, 7)]
    assert [run.config.sampler.order for run in sweep.runs] == [1, 2, 2]


def test_an_arm_that_is_a_base_alone_has_its_name(tmp_path: Path) -> None:
    presets(tmp_path)
    text = "arms: {a: {base: presets/flash.yaml}, b: {base: presets/deep.yaml, window.size: 2}}\n"
    sweep = load_sweep(sweep_file(tmp_path, text + "seeds: 1\n"))
    assert [(a.name, a.label) for a in sweep.arms] == [("a", "flash"), ("b", "b")]


def test_arms_with_bases_are_combined_with_a_grid(tmp_path: Path) -> None:
    presets(tmp_path)
    text = "arms: {slide: {}, flash: {base: presets/flash.yaml}}\n"
    sweep = load_sweep(sweep_file(tmp_path, text + "grid: {window.size: [1, 2]}\nseeds: 1\n"))
    assert [(r.arm, r.config.sampler.order, r.config.window.size) for r in sweep.runs] == [
        ("slide,size=1", 1, 1),
        ("slide,size=2", 1, 2),
        ("flash,size=1", 2, 1),
        ("flash,size=2", 2, 2),
    ]


def test_what_presets_differ_in_is_no_setting_for_all(tmp_path: Path) -> None:
    presets(tmp_path)
    file = sweep_file(tmp_path, PRESETS)
    for text in ("sampler.order=3", "window.interval=3", "window.size=3", "iterations=5"):
        key = text.partition("=")[0].replace(".", r"\.")
        with pytest.raises(ConfigError, match=f"the arms differ in {key}"):
            load_sweep(file, None, [text])
    # base.yaml says 25 steps and the other base nothing: 25 is the default.
    assert load_sweep(file, None, ["sampler.steps=20"]).runs[1].config.sampler.steps == 20
    assert len(load_sweep(file, None, ["rollout.prompts=2"]).runs) == 3


def test_the_plan_names_bases_and_drawn_steps(tmp_path: Path) -> None:
    text = f"""\
arms:
  flash: {{base: {SWEEPS}/presets/mixgrpo-flash.yaml}}
  dance: {{base: {SWEEPS}/presets/dance-grpo.yaml}}
seeds: 1
"""
    sweep = load_sweep(sweep_file(tmp_path, text))
    said = describe(sweep, look_at_all(sweep, tmp_path / "runs"), 1)
    assert (
        f"flash: mixgrpo-flash (reference)\n  runs         1: 1 waiting\n  base         {SWEEPS}"
        in said
    )
    assert "steps 0-23 all the time; 14 of these 24 steps are trained" in said
    assert said.count("are trained") == 1


def test_presets_that_do_the_same_are_found(tmp_path: Path) -> None:
    presets(tmp_path)
    text = """\
arms:
  a: {base: presets/flash.yaml, window.strategy: exp-decay}
  b: {base: presets/flash.yaml}
seeds: 1
"""
    assert same_schedules(load_sweep(sweep_file(tmp_path, text))) == [("a", "b")]


def test_a_profile_overrides_and_its_settings_add_up(tmp_path: Path) -> None:
    text = """\
set: {iterations: 10, window.size: 2}
grid: {window.interval: [1, 2]}
seeds: 5
profiles:
  gpu: {seeds: 2}
  laptop: {set: {iterations: 20}, grid: {window.interval: [3]}, notes: scaled}
"""
    file = sweep_file(tmp_path, text)
    laptop = load_sweep(file)
    assert laptop.profile == "laptop"
    assert laptop.runs[0].config.iterations == 20
    assert laptop.runs[0].config.window.size == 2
    assert [a.name for a in laptop.arms] == ["interval=3"]
    assert laptop.notes == "scaled"
    assert len(load_sweep(file, "gpu").runs) == 4
    assert profile_names(file) == ["gpu", "laptop"]
    assert known_folders(file) == {
        run.folder_name for profile in ("gpu", "laptop") for run in load_sweep(file, profile).runs
    }


def test_overrides_lie_on_top_and_leave_the_arms_apart(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, "grid: {window.interval: [15, 25]}\nseeds: 1\n")
    assert load_sweep(file, None, ["iterations=7"]).runs[0].config.iterations == 7
    with pytest.raises(ConfigError, match=r"the arms differ in window\.interval"):
        load_sweep(file, None, ["window.interval=3"])
    with pytest.raises(ConfigError, match="`seeds:` sets the seeds"):
        load_sweep(file, None, ["seed=3"])


def test_published_rows_are_found_by_value_or_told(tmp_path: Path) -> None:
    grid = "grid: {window.interval: [15, 25]}\nseeds: 1\npaper: tau\n"
    assert load_sweep(sweep_file(tmp_path, grid)).paper_rows == {
        "interval=15": "15",
        "interval=25": "25",
    }
    scaled = (
        "grid: {window.interval: [5, 8, 9]}\nseeds: 1\npaper: tau\npaper_rows: {5: 15, 8: 25}\n"
    )
    assert load_sweep(sweep_file(tmp_path, scaled)).paper_rows == {
        "interval=5": "15",
        "interval=8": "25",
    }


def test_within_groups_every_arm_has_a_reference_of_its_own_group(tmp_path: Path) -> None:
    text = (
        "grid: {window.size: [2, 4], window.interval: [15, 25]}\nseeds: 3\n"
        "within: window.size\nreference: {window.interval: 25}\n"
    )
    sweep = load_sweep(sweep_file(tmp_path, text))
    assert sweep.references == {
        "size=2,interval=15": "size=2,interval=25",
        "size=2,interval=25": "size=2,interval=25",
        "size=4,interval=15": "size=4,interval=25",
        "size=4,interval=25": "size=4,interval=25",
    }
    assert sweep.reference_label == "τ = 25 · same w"


def test_within_groups_a_named_arm_is_the_reference_of_each(tmp_path: Path) -> None:
    text = (
        "arms: {plain: {}, wide: {window.size: 6, label: w = 6}}\nseeds: 3\n"
        "grid: {window.interval: [15, 25]}\nwithin: window.interval\nreference: wide\n"
    )
    sweep = load_sweep(sweep_file(tmp_path, text))
    assert set(sweep.references.items()) == {
        (f"{arm},interval={tau}", f"wide,interval={tau}")
        for arm in ("plain", "wide")
        for tau in (15, 25)
    }
    assert sweep.reference_label == "w = 6 · same τ"


def test_same_schedules_are_found(tmp_path: Path) -> None:
    text = """\
arms:
  constant: {window.strategy: constant}
  exponential: {window.strategy: exp-decay}
  linear: {window.strategy: linear-decay}
  wide: {window.strategy: constant, window.size: 6}
seeds: 2
"""
    # The paper's own pair: at 300 iterations the threshold of 13 is never passed.
    assert same_schedules(load_sweep(sweep_file(tmp_path, text))) == [("constant", "exponential")]


def test_only_takes_a_part(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, "grid: {window.interval: [15, 25]}\nseeds: 2\n"))
    assert {r.arm for r in only(sweep, ["interval=15"]).runs} == {"interval=15"}
    with pytest.raises(ConfigError, match="did you mean interval=25"):
        only(sweep, ["interval=26"])


SAME = {"strategy": [("constant", "exp-decay")]}
"""The released decay begins where the window never comes to, and the study says so."""


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_sweeps_that_ship_are_valid_in_every_profile(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prompts are the user's, in the folder where the command is run.
    monkeypatch.chdir(shutil.copytree(SWEEPS.parent / "examples", tmp_path / "examples"))
    for profile in profile_names(file) or [None]:
        sweep = load_sweep(file, profile)
        assert sweep.name == file.stem
        assert len(sweep.runs) == len(sweep.arms) * len(sweep.seeds)
        assert same_schedules(sweep) == SAME.get(sweep.name, [])


def test_the_laptop_windows_move_as_far_as_the_papers() -> None:
    laptop, full = (load_sweep(SWEEPS / "tau.yaml", name) for name in ("laptop", "full"))

    def reach(sweep_runs: tuple) -> list[int]:
        return [r.config.make_window().start_at(r.config.iterations - 1) for r in sweep_runs]

    n = len(full.arms)
    for scaled, published in zip(reach(laptop.runs[:n]), reach(full.runs[:n]), strict=True):
        assert abs(scaled - published) <= 1
    assert list(laptop.paper_rows.values()) == list(full.paper_rows.values())


def test_importing_the_command_does_not_import_torch() -> None:
    code = (
        "import sys, harness.sweep, harness.status, harness.launching.plan, harness.launching.job;"
        "heavy = {'torch', 'pandas', 'matplotlib', 'submitit', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- errors

GRID = "grid: {window.interval: [15, 25]}\nseeds: 2\n"

ERRORS = {
    "unknown key": (
        "gird: {window.interval: [1]}\nseeds: 2\n",
        "sweep.yaml:4: gird: unknown key; did you mean grid?",
    ),
    "unknown key in a profile": (
        GRID + "profiles:\n  gpu:\n    seed: 3\n",
        "sweep.yaml:8: profiles.gpu.seed: unknown key; did you mean seeds?",
    ),
    "unknown setting": (
        GRID + "set:\n  iterations: 3\n  window.intervall: 3\n",
        "sweep.yaml:8: window.intervall: unknown key; did you mean window.interval?",
    ),
    "unknown nested setting": (
        GRID + "set:\n  window:\n    sizes: 3\n",
        "sweep.yaml:8: window.sizes: unknown key; did you mean window.size?",
    ),
    "unknown setting of an arm": (
        "arms:\n  a:\n    windw: {size: 3}\nseeds: 2\n",
        "sweep.yaml:6: windw: unknown key; did you mean window",
    ),
    "setting given twice": (
        GRID + "set:\n  window: {size: 3}\n  window.size: 3\n",
        "sweep.yaml:8: set.window.size: window.size is given twice; keep one",
    ),
    "wrong type": (GRID + "name2: 3\n", "sweep.yaml:6: name2: unknown key; did you mean name?"),
    "wrong type of a setting": (
        GRID + "set: {window.size: four}\n",
        "sweep.yaml:6: window.size: expected a valid integer, not 'four' (every arm)",
    ),
    "wrong type in the grid": (
        "grid:\n  window.interval:\n  - 15\n  - often\nseeds: 2\n",
        "sweep.yaml:7: window.interval: expected a valid integer, not 'often'",
    ),
    "wrong type of seeds": (
        "grid: {window.interval: [15, 25]}\nseeds: many\n",
        "sweep.yaml:5: seeds: 'many' is not a seed; give a count",
    ),
    "grid is no mapping": ("grid: 3\nseeds: 2\n", "sweep.yaml:4: grid: expected keys with values"),
    "grid over a field that does not exist": (
        "grid: {window.tau: [15, 25]}\nseeds: 2\n",
        "sweep.yaml:4: window.tau: unknown key; did you mean window.",
    ),
    "grid over the seed": (
        "grid: {seed: [15, 25]}\nseeds: 2\n",
        "sweep.yaml:4: grid.seed: is not a setting of an arm; give `seeds:`",
    ),
    "empty grid": ("grid: {}\nseeds: 2\n", "sweep.yaml:4: grid: is empty: nothing to compare"),
    "empty list": (
        "grid: {window.interval: []}\nseeds: 2\n",
        "sweep.yaml:4: grid.window.interval: has no values",
    ),
    "one value that is no list": (
        "grid: {window.interval: 15}\nseeds: 2\n",
        "sweep.yaml:4: grid.window.interval: expected a list of values, such as [1, 2], not 15",
    ),
    "a value twice": (
        "grid: {window.interval: [15, 25, 15]}\nseeds: 2\n",
        "the arms interval=15 and interval=15 are the same configuration",
    ),
    "two arms that are the same": (
        "arms:\n  a: {}\n  b: {window.interval: 25}\nseeds: 2\n",
        "sweep.yaml:4: arms: the arms a and b are the same configuration",
    ),
    "two arms whose names differ in case": (
        "arms:\n  a: {}\n  A: {window.interval: 20}\nseeds: 2\n",
        "two arms have the name A",
    ),
    "no arms": ("arms: {}\nseeds: 2\n", "sweep.yaml:4: arms: is empty"),
    "neither grid nor arms": ("seeds: 2\n", "sweep.yaml: neither grid nor arms"),
    "window longer than the trajectory": (
        "grid: {window.size: [4, 26]}\nseeds: 2\n",
        "is longer than the trajectory of sampler.steps = 25; shorten the window or raise "
        "sampler.steps (arm size=26)",
    ),
    "negative seed": (
        "grid: {window.interval: [15, 25]}\nseeds: [0, -1]\n",
        "sweep.yaml:5: seeds.1: -1 is not a seed",
    ),
    "negative count": (
        "grid: {window.interval: [15, 25]}\nseeds: -1\n",
        "sweep.yaml:5: seeds: -1 is not a seed",
    ),
    "repeated seed": (
        "grid: {window.interval: [15, 25]}\nseeds: [3, 1, 3]\n",
        "sweep.yaml:5: seeds.2: the seed 3 is given twice; keep one",
    ),
    "no seeds": ("grid: {window.interval: [15, 25]}\n", "sweep.yaml: seeds: this key is missing"),
    "reference is no arm": (
        GRID + "reference: interval=26\n",
        "sweep.yaml:6: reference: no such arm: interval=26; did you mean interval=25?",
    ),
    "within what no arm sets": (
        GRID + "within: window.size\n",
        "sweep.yaml:6: within: arm interval=15 does not set window.size",
    ),
    "within groups of one arm each": (
        GRID + "within: window.interval\n",
        "sweep.yaml:6: within: compares no arm with another: every value of window.interval has "
        "one arm; name a setting that several arms share, or leave it out",
    ),
    "reference fits no arm": (
        GRID + "reference: {window.interval: 20}\n",
        "no arm has window.interval = 20; the arms are interval=15, interval=25",
    ),
    "reference fits two arms": (
        "grid: {window.interval: [15, 25], window.size: [2, 4]}\nseeds: 1\n"
        "reference: {window.interval: 15}\n",
        "window.interval = 15 fits the arms interval=15,size=2, interval=15,size=4",
    ),
    "sweep name that leaves the folder": (
        "name: ../x\n",
        "sweep.yaml:4: name is given twice; keep one",
    ),
    "arm name that leaves the folder": (
        "arms:\n  ../x: {}\nseeds: 1\n",
        "'../x' cannot be part of a folder's name",
    ),
    "absolute arm name": ("arms:\n  /x: {}\nseeds: 1\n", "'/x' cannot be part of a folder's name"),
    "empty arm name": ("arms:\n  '': {}\nseeds: 1\n", "'' cannot be part of a folder's name"),
    "measure that is not measured": (
        GRID + "measure: strictt\n",
        "sweep.yaml:6: measure: not every arm measures the reward strictt; did you mean strict?",
    ),
    "unknown published table": (
        GRID + "paper: taus\n",
        "sweep.yaml:6: paper: no such table: taus; did you mean tau?",
    ),
    "unknown published row": (
        GRID + "paper: tau\npaper_rows: {15: 16}\n",
        "sweep.yaml:7: paper_rows.15: the table tau has no row 16 (known: 15, 20, 25, 30)",
    ),
    "row of no arm": (
        GRID + "paper: tau\npaper_rows: {14: 15}\n",
        "sweep.yaml:7: paper_rows.14: no such arm or grid value: 14",
    ),
    "two arms with one label": (
        "arms:\n  a: {label: same}\n  b: {label: same, window.size: 2}\nseeds: 1\n",
        "sweep.yaml:4: arms: the arms a and b have the same label same",
    ),
    "base of an arm that is not there": (
        "arms:\n  a: {}\n  b:\n    base: bas.yaml\nseeds: 1\n",
        "sweep.yaml:7: arms.b.base: bas.yaml: no such file; did you mean base.yaml?",
    ),
    "base of an arm that is no path": (
        "arms:\n  a: {}\n  b:\n    base: 3\nseeds: 1\n",
        "sweep.yaml:7: arms.b.base: expected the path of a run configuration, not 3",
    ),
    "base of an arm that is a sweep": (
        "arms:\n  a: {}\n  b:\n    base: sweep.yaml\nseeds: 1\n",
        "sweep.yaml:7: arms.b.base: sweep.yaml: is a sweep file",
    ),
    "base of an arm that does not fit": (
        "arms:\n  a: {}\n  b: {base: base.yaml, window.size: 26}\nseeds: 1\n",
        "sweep.yaml:6: window.start 0 + window.size 26 is longer than the trajectory",
    ),
    "two arms on the same base": (
        "arms:\n  a: {}\n  b: {base: base.yaml}\nseeds: 1\n",
        "sweep.yaml:4: arms: the arms a and b are the same configuration",
    ),
    "misspelt base": (
        "arms:\n  a: {}\n  b: {bsae: base.yaml}\nseeds: 1\n",
        "sweep.yaml:6: arms.b.bsae: unknown key; did you mean base?",
    ),
    "set in an arm": (
        "arms:\n  a: {}\n  b: {set: {window.size: 2}}\nseeds: 1\n",
        "sweep.yaml:6: arms.b.set: an arm's settings need no `set:`",
    ),
    "setting outside set": (
        GRID + "iterations: 3\n",
        "sweep.yaml:6: iterations: is a setting of the runs; write it below `set:`",
    ),
    "not YAML": ("grid: {window.interval: [15\nseeds: 2\n", "not valid YAML"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error(case: str, tmp_path: Path) -> None:
    text, expected = ERRORS[case]
    assert expected in message(tmp_path, text)


@pytest.mark.parametrize("name", ["../x", "/x", "''", ".", "a b", "x/../y", "-rf"])
def test_a_sweep_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: {name}\nquestion: Which?\n{GRID}")
    with pytest.raises(ConfigError, match=r"sweep.yaml:1: name: .* cannot be part of a folder's"):
        load_sweep(file)


def test_a_file_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    sweep_file(tmp_path, GRID)
    with pytest.raises(ConfigError, match=r"sweeep.yaml: no such file; did you mean .*sweep.yaml"):
        load_sweep(tmp_path / "sweeep.yaml")


def test_a_base_that_is_not_there_names_the_line(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, GRID)
    file.write_text(file.read_text().replace("base.yaml", "bass.yaml"))
    with pytest.raises(ConfigError, match=r"sweep.yaml:3: base: .*did you mean .*base.yaml"):
        load_sweep(file)


@pytest.mark.parametrize(
    "name", ["scenes", "mixgrpo", "mixgrpo-flash", "flow-grpo-fast", "dance-grpo"]
)
def test_a_run_configuration_is_no_sweep(name: str) -> None:
    file = SWEEPS / "presets" / f"{name}.yaml"
    with pytest.raises(ConfigError, match="is a run configuration, not a sweep file; name it as"):
        load_sweep(file)


def test_a_folder_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; name the sweep file"):
        load_sweep(tmp_path)


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    text = GRID + "profiles:\n  laptop: {}\n"
    found = message(tmp_path, text, "labtop")
    assert found == "sweep.yaml:6: no such profile: labtop; did you mean laptop?"
    assert "the file has no profiles" in message(tmp_path, GRID, "laptop")


def test_errors_leave_the_process_with_one_line_and_code_2(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, "grid: {}\nseeds: 2\n")
    for module in ("harness.sweep", "harness.status"):
        command = [sys.executable, "-m", module, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {file}:4: grid: is empty")
        assert done.stderr.count("\n") == 1
    command = [sys.executable, "-m", "harness.sweep", str(file), "--job", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: No such option")
