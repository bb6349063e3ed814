"""What a shell or an allocation says of processes reaches no job that is one alone."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from harness.launching.dispatch import Inline, Start
from harness.probing.workers import _Worker
from harness.runs import environment
from harness.runs.records import Environment
from tests.harness.lab import Lab

STRAY = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "NODE_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_CPU": "true",
    "FSDP_VERSION": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "2",
    "SLURMD_NODENAME": "n1",
    "SUBMITIT_EXECUTOR": "slurm",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_RANK": "1",
    "PMIX_RANK": "1",
}
KEPT = {"SLURM_CONF": "/etc/slurm.conf", "MY_RANK": "7", "HF_HOME": "/hub", "WANDB_MODE": "offline"}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STRAY | KEPT).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("shell")
def test_variables_of_a_job_are_known_and_everything_else_stays() -> None:
    assert STRAY.keys() <= set(environment.job_variables())
    assert not KEPT.keys() & set(environment.job_variables())
    assert {"PATH", "HOME"}.isdisjoint(environment.job_variables())
    before = dict(os.environ)
    with environment.changed(
        {**dict.fromkeys(environment.job_variables()), "NEW": "1", "HF_HOME": "/x"}
    ):
        assert not STRAY.keys() & os.environ.keys()
        assert (os.environ["NEW"], os.environ["HF_HOME"]) == ("1", "/x")
    assert dict(os.environ) == before


@pytest.mark.usefixtures("shell")
def test_workers_of_probes_begin_without_them() -> None:
    assert not STRAY.keys() & _Worker("").environment.keys()
    assert KEPT.items() <= _Worker("").environment.items()


SEEN: list[dict[str, str]] = []


@pytest.mark.usefixtures("shell")
def test_an_inline_job_begins_without_them_and_gives_them_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)

    def run(job: object, should_stop: object) -> str:
        SEEN.append(dict(os.environ))
        os.chdir("/")
        return "finished"

    monkeypatch.setattr("harness.launching.job.Job.run", run)
    place = Path.cwd()
    [one, *_] = lab.sweep.runs
    Inline(lambda: False).start([Start(one, lab.root / "run")])
    assert not STRAY.keys() & SEEN[-1].keys()
    assert Path.cwd() == place
    assert {k: v for k, v in os.environ.items() if k in before} | SEEN[-1] == before | SEEN[-1]


@pytest.mark.parametrize("executor", ["local", "inline"])
@pytest.mark.usefixtures("shell")
def test_a_sweep_in_such_a_shell_finishes(lab: Lab, executor: str) -> None:
    code, output = lab.finish("--executor", executor)
    assert code == 0, output
    assert "4 of 4 runs finished" in output


@pytest.mark.parametrize(
    ("device", "threads", "one_core"),
    [("cpu", 1, True), ("cpu", 2, False), ("NVIDIA H200, MIG 1g", 1, False)],
)
def test_a_machine_of_one_core_is_known_whatever_its_processor_is_called(
    device: str, threads: int, one_core: bool
) -> None:
    said = environment.describe(threads, None) | {"device": device, "cpu": "EPYC, Rome, 1 thread"}
    machine = environment.Machine.of(Environment.model_validate(said))
    assert machine.one_core is one_core
    assert environment.Machine.read(asdict(machine)) == machine


def test_what_version_0_1_kept_of_a_machine_is_read() -> None:
    words = "AMD EPYC, 1 thread per run, Python 3.11.7, torch 2.13.0+cpu, no commit known"
    assert environment.Machine.read(words) == environment.Machine(words, one_core=True)
    assert not environment.Machine.read(f"NVIDIA H200, {words}").one_core
