"""The Slurm executor against an sbatch that refuses: what is asked again, and what never is."""

from pathlib import Path

import pytest

from harness.launching.cluster import Cluster, _clean_environment
from harness.launching.dispatch import Start
from harness.launching.job import Job
from harness.launching.pack import Pack
from harness.launching.resources import Slurm
from harness.slurm import submissions
from mixgrpo.errors import ConfigError
from tests.harness.fake_slurm import FakeSlurm
from tests.harness.lab import Lab

POLICY = (
    "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)"
)
SMALL = Slurm(gpus=0, cpus=1, time=5)


class Desk:
    """An executor, the fake Slurm it talks to, and four runs."""

    def __init__(self, lab: Lab, monkeypatch: pytest.MonkeyPatch, asked: Slurm = SMALL) -> None:
        self.fake = FakeSlurm(lab.root, monkeypatch)
        self.place = lab.runs / "toy"
        self.place.mkdir(parents=True)
        self.said: list[str] = []
        wishes = {arm.name: asked for arm in lab.sweep.arms}
        self.cluster = Cluster("toy", self.place, wishes, self.said.append)
        self.starts = [Start(run, self.place / run.folder_name) for run in lab.sweep.runs]

    def accept(self, most: int) -> None:
        """Take arrays of up to so many jobs."""
        script = self.fake.bin / "sbatch"
        error = POLICY.replace("\n", "' >&2; echo '").replace("user's", "user s")
        script.write_text(
            "#!/bin/sh\n"
            f'echo "$*" >> {self.fake.bin}/sbatch.calls\n'
            "last=$(/bin/sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' \"$1\")\n"
            f"if [ $((${{last:-0}} + 1)) -gt {most} ]; then echo '{error}' >&2; exit 1; fi\n"
            f"echo Submitted batch job $(/usr/bin/wc -l < {self.fake.bin}/sbatch.calls)\n"
        )


@pytest.fixture
def desk(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(lab, monkeypatch)


def test_an_array_that_is_too_much_for_the_site_is_halved_until_it_fits(desk: Desk) -> None:
    desk.accept(most=1)
    assert desk.cluster.start(desk.starts) == [start.name for start in desk.starts]
    made = submissions.read(desk.place)
    assert [len(submission.tasks) for submission in made] == [1, 1, 1, 1]
    assert len({submission.job for submission in made}) == 4
    before = len(desk.fake.calls("sbatch"))
    desk.cluster.start(desk.starts)
    assert len(desk.fake.calls("sbatch")) == before + 4  # the size that fits is remembered


def test_a_full_queue_is_left_alone_for_a_while_and_an_empty_one_is_an_error(desk: Desk) -> None:
    desk.accept(most=0)
    desk.fake.answer("squeue", "1|N/A|RUNNING|None|n1|mine\n")
    assert desk.cluster.start(desk.starts) == []
    assert desk.said == [
        "Slurm accepts no more jobs now (QOSMaxSubmitJobPerUserLimit; Batch job submission failed: "
        "Job violates accounting/QOS policy (job submit limit, user s size and/or time limits)); "
        "trying again"
    ]
    assert desk.cluster.slots == 0
    assert submissions.read(desk.place) == []
    desk.cluster._not_before = 0.0
    assert desk.cluster.slots is None
    desk.fake.answer("squeue", "")
    with pytest.raises(ConfigError, match="sbatch refuses: QOSMaxSubmitJobPerUserLimit"):
        desk.cluster.start(desk.starts)


def test_a_silent_controller_keeps_the_record_for_the_queue_to_tell(desk: Desk) -> None:
    desk.fake.fail("sbatch", "sbatch: error: Unable to contact slurm controller (connect failure)")
    assert desk.cluster.start(desk.starts) == []
    (made,) = submissions.read(desk.place)
    assert (made.job, desk.cluster.slots) == (None, 0)
    assert desk.said[0].startswith("Slurm does not answer (Unable to contact slurm controller")


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: invalid partition specified: nowhere",
        "sbatch: error: Requested time limit is invalid (missing or exceeds some limit)",
        "",
    ],
)
def test_what_is_refused_for_good_is_one_error(error: str, desk: Desk) -> None:
    desk.fake.fail("sbatch", error)
    with pytest.raises(ConfigError, match="sbatch refuses: "):
        desk.cluster.start(desk.starts)
    assert submissions.read(desk.place) == []


def test_an_sbatch_without_a_cluster_says_where_to_go(desk: Desk) -> None:
    desk.fake.fail(
        "sbatch",
        "sbatch: error: fetch_config: DNS SRV lookup failed\n"
        "sbatch: fatal: Could not establish a configuration source",
    )
    with pytest.raises(ConfigError, match="not configured on this machine; run this on a login"):
        desk.cluster.start(desk.starts)


def test_the_text_has_the_last_word_over_the_environment(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    for name in ("SBATCH_JOB_NAME", "SBATCH_PARTITION", "SBATCH_RESERVATION", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "x")
    with _clean_environment({"partition": "gpu"}):
        inside = {name for name in os.environ if name.startswith(("SBATCH_", "SLURM_"))}
    assert inside == {"SBATCH_RESERVATION"}
    assert os.environ["SBATCH_JOB_NAME"] == "x"


def test_options_of_sbatch_may_be_switches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = SMALL.model_copy(
        update={"sbatch": {"requeue": False, "spread-job": True, "reservation": "icml"}}
    )
    desk = Desk(lab, monkeypatch, asked)
    text = desk.cluster.text(desk.cluster.arrays(desk.starts)[0])
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --spread-job" in lines
    assert "#SBATCH --reservation=icml" in lines
    assert not any("requeue" in line or "wckey" in line for line in lines)


def test_a_folder_whose_name_slurm_would_read_otherwise_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeSlurm(lab.root, monkeypatch)
    with pytest.raises(ConfigError, match="contains a %, which Slurm"):
        Cluster("toy", lab.root / "100%" / "toy", {"a": SMALL}, print)


def test_runs_of_a_pack_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = Pack(tuple(Job(f"run{i}", "{}") for i in range(3)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [job.gpu for job in pack._with_gpus()] == ["4", "6", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert [job.gpu for job in pack._with_gpus()] == [None] * 3


def test_paths_may_have_spaces(lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    desk = Desk(lab, monkeypatch)
    cluster = Cluster("toy", tmp_path / "my runs" / "toy", desk.cluster.resources, print)
    text = cluster.text(cluster.arrays(desk.starts)[0])
    assert f"'{tmp_path}/my runs/toy/submissions/TOKEN'" in text
