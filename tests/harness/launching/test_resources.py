"""What a run asks of Slurm: layers, times, and errors that name file, line, key and fix."""

import re
from pathlib import Path

import pytest

from harness.launching.resources import Slurm, minutes, resources
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError

TOP = "name: toy\nquestion: Which?\nset: {iterations: 6}\nseeds: 2\n"
ARMS = "arms:\n  plain: {}\n  big: {window.interval: 3}\n"


class Desk:
    """A user's site file and sweep file."""

    def __init__(self, root: Path) -> None:
        self.site, self.file = root / "site.yaml", root / "toy.yaml"
        self.site.write_text("{}\n")

    def ask(self, sweep: str, *overrides: str, site: str = "{}\n") -> dict[str, Slurm]:
        self.site.write_text(site)
        self.file.write_text(TOP + sweep)
        return resources(load_sweep(self.file), list(overrides))

    def error(self, sweep: str, *overrides: str, site: str = "{}\n") -> str:
        with pytest.raises(ConfigError) as caught:
            self.ask(sweep, *overrides, site=site)
        text = str(caught.value)
        assert "\n" not in text
        return text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("MIXGRPO_SLURM", str(tmp_path / "site.yaml"))
    return Desk(tmp_path)


# ---- layers ----------------------------------------------------------------------------------


def test_each_layer_lies_on_top_of_the_one_before(desk: Desk) -> None:
    # Every layer gives its own value to what it and all later ones say.
    site = "{partition: site, account: site, qos: site, constraint: site, python: site}\n"
    sweep = """\
slurm: {account: sweep, qos: sweep, constraint: sweep, python: sweep}
profiles:
  laptop:
    slurm: {qos: profile, constraint: profile, python: profile}
arms:
  plain: {}
  big:
    window.interval: 3
    slurm: {constraint: arm, python: arm}
"""
    found = desk.ask(sweep, "python=line", site=site)
    values = {
        arm: (one.partition, one.account, one.qos, one.constraint, one.python)
        for arm, one in found.items()
    }
    assert values == {
        "plain": ("site", "sweep", "profile", "profile", "line"),
        "big": ("site", "sweep", "profile", "arm", "line"),
    }


def test_what_nobody_says_has_its_default(desk: Desk) -> None:
    assert desk.ask(ARMS) == {"plain": Slurm(), "big": Slurm()}


def test_sbatch_is_merged_by_key_and_lists_are_replaced(desk: Desk) -> None:
    site = "sbatch: {reservation: icml, nice: 10}\nsetup: [module load cuda, ulimit -c 0]\n"
    sweep = """\
slurm: {sbatch: {nice: 20, exclusive: true}}
arms:
  plain: {}
  big: {window.interval: 3, slurm: {setup: [module load rocm]}}
"""
    found = desk.ask(sweep, "sbatch={comment: late}", site=site)
    for one in found.values():
        assert one.sbatch == {
            "reservation": "icml",
            "nice": 20,
            "exclusive": True,
            "comment": "late",
        }
    assert found["plain"].setup == ("module load cuda", "ulimit -c 0")
    assert found["big"].setup == ("module load rocm",)


def test_the_points_of_a_grid_inherit_from_the_named_arm(desk: Desk) -> None:
    sweep = """\
arms:
  plain: {}
  big: {sampler.eta: 0.5, slurm: {gpus: 4}}
grid: {window.interval: [1, 3]}
"""
    found = desk.ask(sweep)
    assert {arm: one.gpus for arm, one in found.items()} == {
        "plain,interval=1": 1,
        "plain,interval=3": 1,
        "big,interval=1": 4,
        "big,interval=3": 4,
    }


def test_a_profile_with_arms_of_its_own_brings_their_wishes(desk: Desk) -> None:
    sweep = """\
arms:
  plain: {slurm: {gpus: 2}}
  big: {window.interval: 3}
profiles:
  laptop:
    arms:
      plain: {slurm: {gpus: 8}}
      other: {window.interval: 4}
"""
    assert {arm: one.gpus for arm, one in desk.ask(sweep).items()} == {"plain": 8, "other": 1}


def test_where_runs_run_is_no_setting_and_changes_no_hash(desk: Desk) -> None:
    desk.file.write_text(TOP + ARMS)
    before = [run.folder_name for run in load_sweep(desk.file).runs]
    wishes = ARMS.replace("{}", "{slurm: {gpus: 8, time: 90}}")
    desk.file.write_text(TOP + wishes + "slurm: {partition: gpu}\n")
    after = load_sweep(desk.file)
    assert [run.folder_name for run in after.runs] == before
    assert after.arms[0].settings == {}
    assert resources(after)["plain"].gpus == 8


def test_the_site_file_is_found_in_the_users_configuration(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIXGRPO_SLURM")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert desk.ask(ARMS)["plain"].partition is None
    (tmp_path / "config" / "mixgrpo").mkdir(parents=True)
    (tmp_path / "config" / "mixgrpo" / "slurm.yaml").write_text("partition: there\n")
    assert desk.ask(ARMS)["plain"].partition == "there"


def test_a_site_file_of_comments_alone_says_nothing(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.yaml").write_text("# partition: gpu\n\n")
    monkeypatch.setenv("MIXGRPO_SLURM", str(tmp_path / "empty.yaml"))
    assert desk.ask(ARMS)["plain"].partition is None


# ---- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:30", 91),
        ("0:30", 1),
        ("4:00:00", 240),
        ("4:00:01", 241),
        ("1-00:00:00", 1440),
        ("1-12", 2160),
        ("2-01:30", 2970),
        (" 15 ", 15),
    ],
)
def test_times_are_read_as_sbatch_reads_them(text: str, expected: int, desk: Desk) -> None:
    assert minutes(text) == expected
    # Unquoted: YAML 1.1 would make a number of 4:00:00.
    # A signal so early that a minute is time enough.
    asked = desk.ask(f"{ARMS}slurm:\n  signal_s: 10\n  time: {text}\n")
    assert asked["plain"].time == expected
    assert desk.ask(ARMS, "signal_s=10", f"time={text}")["big"].time == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("time=2",), "signal_s: a signal 120 s before the end leaves too little of 2 min"),
        (("tasks_per_node=8", "gpus=1"), "tasks_per_node: 8 processes need as many GPUs"),
        (("sbatch={job-name: mine}",), "job-name is set by this program; leave it out"),
        (("sbatch={job_name: mine}",), "job_name is set by this program; leave it out"),
        (("sbatch={array: 0-99}",), "array is set by this program"),
        (("sbatch={mem: 4G}",), "mem has a key here; write memory_gb:"),
    ],
)
def test_what_would_break_a_submission_is_refused(
    settings: tuple[str, ...], message: str, desk: Desk
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        desk.ask(ARMS, *settings)


@pytest.mark.parametrize(
    "text", ["soon", "1:2:3:4", "1-", "-4:00:00", "1--2", "1.5", "0", "-5", "true", "", "[1]"]
)
def test_what_is_no_time_is_named_with_its_place(text: str, desk: Desk) -> None:
    said = desk.error(f"{ARMS}slurm:\n  time: {text}\n")
    assert said.startswith(f"{desk.file}:9: slurm: time: ")
    assert said.endswith("is not a time; write minutes or 4:00:00")


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "key", "fix"),
    [
        ("partitoin: gpu", "partitoin", "unknown key; did you mean partition?"),
        ("exclusive: true", "exclusive", "other options of sbatch go below `sbatch:`"),
        ("cpus: many", "cpus", "valid integer, not 'many'"),
        ("cpus: '4'", "cpus", "valid integer, not '4'"),
        ("gpus: true", "gpus", "valid integer, not True"),
        ("gpus: -1", "gpus", "greater than or equal to 0, not -1"),
        ("partition: 5", "partition", "valid string, not 5"),
        ("memory_gb: .inf", "memory_gb", "finite number, not inf"),
        ("signal_s: 5", "signal_s", "greater than or equal to 10, not 5"),
        ("setup: module load cuda", "setup", "expected a list, such as [a, b]"),
        ("setup: [1]", "setup", "valid string, not 1"),
        ("sbatch: reservation", "sbatch", "expected keys with values, not 'reservation'"),
        ("sbatch: {reservation: [a]}", "sbatch.reservation", "valid string"),
        ("pack: 2\n  nodes: 2", "pack", "cannot share a job; leave pack out"),
        ("pack: 2\n  tasks_per_node: 4", "pack", "cannot share a job; leave pack out"),
        ('qos: "gpu\\n#SBATCH"', "qos", "expected one line of text"),
        ('python: "python\\nrm"', "python", "expected one line of text"),
        ('sbatch: {reservation: "a\\nb"}', "sbatch.reservation", "expected one line of text"),
        ("account: ''", "account", "expected one line of text"),
        ("nodes: 99999999999", "nodes", "less than or equal to 100000, not 99999999999"),
        ("sharded: true", "sharded", "raise tasks_per_node or nodes"),
    ],
)
def test_a_mistake_names_place_key_and_fix(given: str, key: str, fix: str, desk: Desk) -> None:
    own = given.replace("\n  ", "\n      ")
    arm = f"arms:\n  plain: {{}}\n  big:\n    window.interval: 3\n    slurm:\n      {own}\n"
    # The same in an arm, in the sweep and in the site's file.
    said = desk.error(arm)
    assert said.startswith(f"{desk.file}:10: slurm: {key}: ")
    assert fix in said
    if key != "1":  # a sweep's own keys are words, whatever they are for
        said = desk.error(f"{ARMS}slurm:\n  {given}\n")
        assert said.startswith(f"{desk.file}:9: slurm: {key}: ")
        assert fix in said
    said = desk.error(ARMS, site="# Ours.\n" + given.replace("\n  ", "\n") + "\n")
    assert said.startswith(f"{desk.site}:2: slurm: {key}: ")
    assert fix in said


def test_a_mistake_on_the_command_line_names_the_option(desk: Desk) -> None:
    assert desk.error(ARMS, "cpus=many").startswith("--slurm cpus=many: slurm: cpus: ")
    assert "did you mean cpus?" in desk.error(ARMS, "cpu=4")
    assert desk.error(ARMS, "gpu").startswith("--slurm gpu: expected KEY=VALUE")
    assert desk.error(ARMS, "setup=[a").startswith("--slurm setup=[a: not valid YAML")
    assert desk.error(ARMS, "pack=2", "nodes=2").startswith("--slurm pack=2: slurm: pack: ")


def test_keys_of_the_wrong_kind_are_mistakes_too(desk: Desk) -> None:
    said = desk.error("arms:\n  plain: {slurm: gpu}\n  big: {window.interval: 3}\n")
    assert said == f"{desk.file}:6: arms.plain.slurm: expected keys with values, not 'gpu'"
    said = desk.error(f"{ARMS}slurm: gpu\n")
    assert said == f"{desk.file}:8: slurm: expected keys with values, not 'gpu'"
    said = desk.error("arms:\n  plain: {slrum: {gpus: 2}}\n  big: {window.interval: 3}\n")
    assert said == f"{desk.file}:6: arms.plain.slrum: unknown key; did you mean slurm?"


def test_a_site_file_that_is_missing_or_broken_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert desk.error(ARMS, site="cpus: [1\n").startswith(f"{desk.site}:2: not valid YAML")
    assert desk.error(ARMS, site="- cpus\n").startswith(f"{desk.site}: expected a mapping")
    gone = tmp_path / "gone.yaml"
    monkeypatch.setenv("MIXGRPO_SLURM", str(gone))
    assert desk.error(ARMS) == f"{gone}: no such file; MIXGRPO_SLURM names it"


# ---- what follows from the wishes ------------------------------------------------------------


def test_a_run_in_a_pack_pays_its_part_of_the_gpus() -> None:
    assert Slurm(gpus=4, nodes=2, tasks_per_node=4).gpus_per_run == 8
    assert Slurm(gpus=4, nodes=2, tasks_per_node=4).processes == 8
    assert Slurm(gpus=1, pack=4).gpus_per_run == 0.25
    assert Slurm(shards=2).gpus_per_run == 0
