"""What a sweep would hand to Slurm: arrays, and GPU hours from the iterations finished so far."""

import json
from pathlib import Path

import pytest

from harness.launching.resources import Slurm
from harness.launching.slurm_plan import describe_arrays
from harness.runs.state import look_at_all
from harness.slurm.scheduler import Scheduler
from tests.harness.fake_slurm import FakeSlurm
from tests.harness.lab import SWEEP, Lab
from tests.harness.slurm.test_submissions import hand_over, line
from tests.harness.synthetic import seal

# Two arms x two seeds of 1000 iterations.
LONG = SWEEP.replace("iterations: 6", "iterations: 1000")


class Desk:
    """A sweep of which some runs have gone some way."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        lab.write(LONG)

    def folder(self, name: str) -> Path:
        run = next(run for run in self.lab.sweep.runs if run.name == name)
        folder = self.lab.runs / "toy" / run.folder_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def iterate(self, name: str, count: int, seconds: float) -> None:
        lines = [{"iteration": m, "seconds_total": seconds} for m in range(count)]
        text = "".join(json.dumps(one) + "\n" for one in lines)
        (self.folder(name) / "metrics.jsonl").write_text(text)

    def finish(self, name: str, seconds: float) -> None:
        totals = ("evaluations_computed", "backward_computed", "nfe_rollout", "nfe_train")
        result = {
            "schema": 1,
            "hash": self.folder(name).name.rpartition("-")[2],
            "seed": int(name.rpartition("-seed")[2]),
            "iterations": 1000,
            "before": {},
            "after": {},
        }
        result |= {"seconds_total": 1000 * seconds, **dict.fromkeys(totals, 1)}
        (self.folder(name) / "metrics.jsonl").write_text("")
        (self.folder(name) / "eval.jsonl").write_text('{"iteration": 0, "seconds_total": 0.0}\n')
        (self.folder(name) / "result.json").write_text(json.dumps(result))
        seal(self.folder(name))

    def plan(self, asked: Slurm, other: Slurm | None = None) -> str:
        """The plan where the arms ask for this, or the second one for something else."""
        sweep, runs = self.lab.sweep, self.lab.runs
        states = look_at_all(sweep, runs, Scheduler(runs / "toy").job_states())
        wishes = dict(zip([arm.name for arm in sweep.arms], (asked, other or asked), strict=True))
        return describe_arrays(sweep, runs, states, wishes)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    one = FakeSlurm(tmp_path, monkeypatch)
    one.answer("scontrol", "MaxArraySize            = 1001\n", to="show config")
    return one


@pytest.fixture
def desk(fake: FakeSlurm, lab: Lab) -> Desk:
    return Desk(lab)


def hours(text: str) -> str:
    return next(row for row in text.splitlines() if row.startswith("GPU hours: "))


def test_gpu_hours_are_those_of_the_iterations_that_are_left(desk: Desk) -> None:
    desk.finish("interval=1-seed0", 36.0)
    desk.iterate("interval=1-seed1", 400, 90.0)  # a finished run of the arm says it better
    desk.iterate("interval=3-seed0", 100, 18.0)
    desk.iterate("interval=3-seed1", 500, 54.0)
    # interval=1: 600 x 36 s = 6 h; interval=3: (900 + 500) x (18 + 54) / 2 s = 14 h; 8 GPUs each.
    said = hours(desk.plan(Slurm(gpus=4, nodes=2, tasks_per_node=4)))
    assert said.startswith("GPU hours: about 160.00, from the iterations finished so far")
    assert "unknown" not in said
    # Four runs share one GPU.
    assert hours(desk.plan(Slurm(gpus=1, pack=4))).startswith("GPU hours: about 5.00,")
    # The arms ask for different things.
    text = hours(desk.plan(Slurm(gpus=1), Slurm(gpus=2)))
    assert text.startswith("GPU hours: about 34.00,")


def test_gpu_hours_without_any_iteration_are_unknown(desk: Desk) -> None:
    assert hours(desk.plan(Slurm())).startswith("GPU hours: unknown; no iteration of these")
    desk.iterate("interval=1-seed0", 900, 36.0)
    # 100 + 1000 iterations of 36 s of one arm; the other is left out, and counted.
    said = hours(desk.plan(Slurm()))
    assert said.startswith("GPU hours: about 11.00,")
    assert said.endswith("and without 2 run(s) whose pace is unknown")


def test_runs_without_gpus_ask_for_no_gpu_hours(desk: Desk) -> None:
    desk.iterate("interval=1-seed0", 900, 36.0)
    assert hours(desk.plan(Slurm(gpus=0))) == "GPU hours: none asked for"


def test_a_run_longer_than_the_limit_is_told(desk: Desk) -> None:
    desk.finish("interval=1-seed0", 14.0)  # 3 h 53 min
    desk.finish("interval=3-seed0", 15.0)  # 4 h 10 min
    text = desk.plan(Slurm(time=240))
    assert "interval=1:" not in text
    assert (
        "interval=3: a run takes about 4 h 10 min, longer than the limit of 4 h 00 min: it is "
        "stopped with a checkpoint and queued again"
    ) in text
    assert "longer than" not in desk.plan(Slurm(time=260))


def test_an_iteration_longer_than_the_warning_before_the_limit_is_told(desk: Desk) -> None:
    desk.finish("interval=1-seed0", 150.0)
    text = desk.plan(Slurm(time=240))
    assert (
        "interval=1: an iteration takes about 2 min 30 s, and a run gets the signal 2 min 00 s "
        "before its time limit, too late for a checkpoint; set signal_s=300"
    ) in text
    assert "too late" not in desk.plan(Slurm(time=240, signal_s=300))


def test_only_what_is_missing_is_submitted(desk: Desk, fake: FakeSlurm) -> None:
    desk.finish("interval=1-seed0", 1.0)
    queued = desk.folder("interval=3-seed1")
    made = hand_over(queued.parent, (queued.name,))
    fake.answer("squeue", line(made, "N/A", "PENDING", "Priority"))
    text = desk.plan(Slurm())
    assert "1 run(s) are in the queue or running already" in text
    assert "array 1 of 1: 2 jobs; each 1 GPU(s), 4 cores, at most 4 h 00 min" in text
    for name in ("interval=1-seed1", "interval=3-seed0", "interval=3-seed1"):
        desk.finish(name, 1.0)
    text = desk.plan(Slurm())
    assert "nothing to submit" in text
    assert "array" not in text
    assert "GPU hours" not in text
    assert fake.calls("sbatch") == []


def test_arrays_are_split_by_wishes_and_by_the_sites_limit(desk: Desk, fake: FakeSlurm) -> None:
    text = desk.plan(Slurm(), Slurm(gpus=2, cpus=8, at_once=1))
    assert "array 1 of 2: 2 jobs; each 1 GPU(s), 4 cores" in text
    assert "array 2 of 2: 2 jobs, 1 at once; each 2 GPU(s), 8 cores" in text
    assert text.count("--- sbatch text") == 2
    fake.answer("scontrol", "MaxArraySize            = 3\n", to="show config")
    text = desk.plan(Slurm(shards=2))
    assert "array 1 of 2: 3 jobs; each 2 GPU share(s)" in text
    assert "array 2 of 2: 1 job; each 2 GPU share(s)" in text
    assert text.count("--- sbatch text") == 1  # they differ in nothing else
    text = desk.plan(Slurm(pack=3))
    assert "array 1 of 1: 2 jobs with up to 3 runs each, 4 runs; each 1 GPU(s)" in text


def test_the_text_for_sbatch_has_what_was_asked_for(desk: Desk) -> None:
    asked = Slurm(
        partition="gpu",
        time=90,
        gpus=4,
        nodes=2,
        tasks_per_node=4,
        memory_gb=1.5,
        signal_s=300,
        at_once=2,
        setup=("module load cuda",),
        sbatch={"reservation": "icml"},
    )
    rows = desk.plan(asked).splitlines()
    for row in (
        "#SBATCH --partition=gpu",
        "#SBATCH --time=90",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --mem=1536M",
        "#SBATCH --reservation=icml",
        "#SBATCH --array=0-3%2",
        "#SBATCH --requeue",
        "module load cuda",
    ):
        assert row in rows
    assert any(row.startswith("#SBATCH --signal=") and row.endswith("@300") for row in rows)
    assert not any("--account" in row or "--qos" in row for row in rows)


def test_a_plan_writes_nothing(desk: Desk) -> None:
    desk.iterate("interval=1-seed0", 3, 1.0)
    before = sorted(desk.lab.runs.rglob("*"))
    desk.plan(Slurm())
    assert sorted(desk.lab.runs.rglob("*")) == before


def test_a_machine_without_slurm_plans_for_it_and_says_that_it_cannot_submit(
    desk: Desk, fake: FakeSlurm
) -> None:
    fake.fail("scontrol", "scontrol: fatal: no configuration source", to="show config")
    said = desk.plan(Slurm())
    assert "array 1 of 1: 4 jobs; each 1 GPU(s)" in said
    assert said.splitlines()[-1].startswith(
        "nothing can be submitted from here: --executor slurm: Slurm is installed, but no cluster "
        "is configured (no slurm.conf)"
    )
    for program in ("sbatch", "srun", "scontrol", "squeue"):
        fake.remove(program)
    said = desk.plan(Slurm())
    assert "array 1 of 1: 4 jobs; each 1 GPU(s)" in said
    assert "sbatch is not installed; run this on a login node" in said
