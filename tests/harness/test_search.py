"""A search: what it asks for, what it gives up, and that no kill loses or repeats anything."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harness import search as command
from harness import sweep as sweeps
from harness.launching import job, screen
from harness.launching import retry as sweep_retry
from harness.launching.job import MAX_TRIES
from harness.runs.folder import read_attempts
from harness.searching import pruning
from harness.searching.file import Search, load_search
from harness.searching.runs import runs_of
from harness.searching.storage import storage_file, where
from harness.searching.study import Study, Trial
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files import lease

from .lab import SEARCHED

HERE = Path(__file__).parent

FILE = """\
name: toy
question: Which interval is best?
set: {iterations: 6, output.checkpoint_every: 1, evaluation.every: 2}
space:
  window.interval: {low: 1, high: 9}
  window.size: [2, 4]
trials: 6
seeds: 2
parallel: 2
prune: {p: 0.0, startup: 50}
enqueue: [{window.interval: 5, window.size: 4}, {window.interval: 7, window.size: 2}]
confirm: {best: 2, seeds: 3, first_seed: 1000}
"""


@dataclass
class SearchLab:
    """A folder with a search file, and launchers on it that end with the test."""

    root: Path
    launchers: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.root / "toy.yaml"

    @property
    def search(self) -> Search:
        return load_search(self.file)

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "toy"

    def trials(self, storage: str | None = None) -> list[Trial]:
        return Study(self.search, self.folder, storage, create=False).trials()

    def here(self, *, confirm: bool = False, **options: Any) -> int:
        """Run the command in this process, one run after the other."""
        folders = {"runs": self.root / "runs", "reports": self.root / "reports"}
        options = {"executor": "inline"} | folders | options
        return command.main(self.file, confirm=confirm, **options)

    def launch(self, *options: str, **fake: Any) -> "subprocess.Popen[str]":
        """Start the command in a process of its own, with local runs."""
        folders = ["--runs", str(self.root / "runs"), "--reports", str(self.root / "reports")]
        launcher = subprocess.Popen(
            [sys.executable, str(HERE / "fake_search.py"), str(self.file), *folders, *options],
            env={
                **os.environ,
                "FAKE_CURVE": json.dumps(fake),
                "PYTHONPATH": SEARCHED,
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.launchers.append(launcher)
        return launcher

    def pids(self) -> list[int]:
        """Processes of the runs that are under way."""
        return [
            attempts[-1].pid
            for run in self.run_folders()
            if lease.is_held(run / "owner") and (attempts := read_attempts(run))
        ]

    def run_folders(self) -> list[Path]:
        return sorted(self.folder.glob("*-seed*-*")) if self.folder.is_dir() else []

    def wait_for(self, condition: Callable[[], bool]) -> None:
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > 60:
                raise TimeoutError
            time.sleep(0.05)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchLab]:
    lab = SearchLab(tmp_path)
    lab.file.write_text(FILE)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(job, "TRAIN", "fake_curve:run")
    monkeypatch.setattr(command, "write_report", lambda *_: tmp_path / "index.html")
    monkeypatch.setattr(sweeps, "write_report", lambda *_: tmp_path / "index.html")
    yield lab
    for launcher in lab.launchers:
        if launcher.poll() is None:
            launcher.kill()
            launcher.communicate()
    for pid in lab.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def tried(trials: list[Trial]) -> list[Trial]:
    return [trial for trial in trials if not trial.free]


# ---- what is asked for -----------------------------------------------------------------------


def test_the_files_own_settings_come_first_and_trials_are_a_total(lab: SearchLab) -> None:
    assert lab.here() == 0
    first = lab.trials()
    assert [t.asked for t in first[:2]] == list(lab.search.enqueue)
    assert len(tried(first)) == 6
    assert {t.state for t in first} <= {"complete", "pruned"}
    # The reward is known: 0.6 - 0.01 |interval - 7| + 0.001 seed, and 600 evaluations per step.
    for trial in tried(first):
        assert trial.asked is not None
        expected = 0.6 - 0.01 * abs(trial.asked["window.interval"] - 7)
        assert trial.rewards == pytest.approx({0: expected, 1: expected + 0.001})
        assert trial.evaluations == 600 * trial.asked["window.size"]
        assert trial.seconds == pytest.approx(3.0)
    attempts = {run.name: len(read_attempts(run)) for run in lab.run_folders()}
    assert set(attempts.values()) == {1}
    assert len(attempts) == 12
    assert lab.here() == 0
    assert [(t.number, t.asked, t.rewards) for t in lab.trials()] == [
        (t.number, t.asked, t.rewards) for t in first
    ]
    lab.file.write_text(FILE.replace("trials: 6", "trials: 7"))
    assert lab.here() == 0
    assert len(tried(lab.trials())) == 7
    assert {run.name: len(read_attempts(run)) for run in lab.run_folders()}.items() >= (
        attempts.items()
    )


def test_the_storage_holds_what_optuna_needs_to_go_on(lab: SearchLab) -> None:
    import optuna

    assert lab.here() == 0
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(storage_file(lab.folder)))
    )
    study = optuna.load_study(study_name="toy", storage=storage)
    names = [lab.search.measure if one == "reward" else one for one in lab.search.objectives]
    assert study.metric_names == names
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert done[1].values == pytest.approx([0.6005, 1200])
    assert done[1].params == {"window.interval": 7, "window.size": 2}
    assert done[1].number in {t.number for t in study.best_trials}


def test_another_space_is_not_mixed_with_the_trials_that_are_there(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    assert lab.here() == 0
    lab.file.write_text(FILE.replace("high: 9", "high: 8"))
    with pytest.raises(ConfigError, match="another space"):
        lab.here()


def test_settings_that_cannot_be_run_are_given_up_with_their_reason(lab: SearchLab) -> None:
    lab.file.write_text(
        FILE.replace("[2, 4]", "{low: 2, high: 60}").replace("trials: 6", "trials: 5")
    )
    assert lab.here() == 0
    trials = lab.trials()
    wrong = [t for t in trials if t.asked and t.asked["window.size"] > 25]
    assert wrong
    assert all(t.state == "pruned" and "longer than the trajectory" in t.why for t in wrong)
    assert len(tried(trials)) == 5
    assert len(lab.run_folders()) == 10


def test_settings_that_were_tried_are_not_run_again(lab: SearchLab) -> None:
    few = FILE.replace("high: 9", "high: 2").replace("trials: 6", "trials: 5")
    lab.file.write_text(re.sub("enqueue:.*", "", few))
    assert lab.here() == 0
    trials = lab.trials()  # of four settings that there are, five cannot be tried
    assert len(tried(trials)) == 4
    assert len(trials) == 50
    assert len(lab.run_folders()) == 8
    again = [t for t in trials if t.free and t.state == "complete"]
    assert again
    by_arm = {t.arm: t for t in tried(trials)}
    assert all(t.rewards == by_arm[t.arm].rewards for t in again)


def test_a_search_of_which_no_trial_came_to_a_result_has_failed(
    lab: SearchLab, capsys: pytest.CaptureFixture[str]
) -> None:
    text = re.sub("enqueue:.*", "", FILE).replace("trials: 6", "trials: 3")
    lab.file.write_text(text + "objectives: [reward]\nbudget: {evaluations: 1}\n")
    assert lab.here() == 1
    said = capsys.readouterr().out
    assert re.search(r"no trial came to a result; trial 0: takes [\d,]+ evaluations, .* over", said)


def test_over_the_budget_nothing_runs_and_optuna_is_told(lab: SearchLab) -> None:
    from harness.launching.plan import evaluations

    text = FILE.replace("trials: 6", "trials: 3").replace("seeds: 2", "seeds: 1")
    small = lab.search.config({"window.interval": 7, "window.size": 2})
    bound = evaluations(small)  # interval 7 never shifts: no other size 2 takes more
    lab.file.write_text(text + f"objectives: [reward]\nbudget: {{evaluations: {bound}}}\n")
    assert lab.here() == 0
    trials = lab.trials()
    over = [t for t in trials if t.asked and t.asked["window.size"] == 4]
    assert trials[0] in over
    assert all(t.state == "pruned" and "over the budget" in t.why for t in over)
    assert all("size=2" in run.name for run in lab.run_folders())
    study = Study(lab.search, lab.folder, None, create=False).study
    for trial in study.trials:
        excess = trial.constraints["evaluations"]
        assert (excess > 0) == (trial.params["window.size"] == 4)


def test_a_search_draws_the_same_settings_however_often_it_is_stopped(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("parallel: 2", "parallel: 1"))
    assert lab.here() == 0
    whole = [t.asked for t in lab.trials()]
    assert len(whole) < 10  # and not the same ones again and again
    shutil.rmtree(lab.folder)
    for total in (3, 4, 6):
        lab.file.write_text(
            FILE.replace("parallel: 2", "parallel: 1").replace("trials: 6", f"trials: {total}")
        )
        assert lab.here() == 0
    assert [t.asked for t in lab.trials()] == whole


# ---- what is given up ------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("shift", [-0.02, 0.0, 0.02])
def test_giving_up_over_seeds_is_wilcoxons_test_on_pairs(n: int, shift: float) -> None:
    noise = [0.011, -0.007, 0.004, 0.013, -0.002]
    rival = {seed: 0.5 + 0.1 * seed for seed in range(5)}
    rewards = {seed: rival[seed] + shift + noise[seed] * 0.1 for seed in range(n)}
    differences = [rewards[seed] - rival[seed] for seed in range(n)]
    p = stats.wilcoxon(differences, alternative="less", zero_method="zsplit").pvalue
    # Optuna keeps what is on average better than the rival over all of the rival's seeds.
    better = sum(rewards.values()) / n >= sum(rival.values()) / len(rival)
    for threshold in (0.05, 0.2, 0.3):
        expected = p < threshold and not better
        assert pruning.worse_over_seeds(rewards, rival, threshold) == expected
    assert not pruning.worse_over_seeds({0: 0.1}, rival, 1.0)


def test_giving_up_along_the_curve_compares_the_same_iteration() -> None:
    others = [{0: 0.4, 20: 0.4 + 0.01 * k, 40: 0.9} for k in range(5)]  # median 0.42 at 20
    assert pruning.behind_on_the_curve({0: 0.4, 20: 0.419}, others, 50, 20, 5)
    assert not pruning.behind_on_the_curve({0: 0.4, 20: 0.421}, others, 50, 20, 5)
    assert not pruning.behind_on_the_curve({0: 0.4, 20: 0.419}, others, 50, 21, 5)
    assert not pruning.behind_on_the_curve({0: 0.4, 20: 0.419}, others[:4], 50, 20, 5)
    assert not pruning.behind_on_the_curve({0: 0.4, 10: 0.0}, others, 50, 0, 1)


def test_what_loses_with_its_first_seeds_is_spared_the_others(lab: SearchLab) -> None:
    text = FILE.replace("p: 0.0", "p: 0.3").replace("seeds: 2", "seeds: 4")
    # The best comes first, so that every later one loses with the two seeds that make a pair.
    lab.file.write_text(
        text.replace(
            "{window.interval: 5, window.size: 4}, {window.interval: 7, window.size: 2}",
            "{window.interval: 7, window.size: 2}",
        ).replace("parallel: 2", "parallel: 1")
    )
    assert lab.here() == 0
    best, *rest = tried(lab.trials())
    assert len(best.rewards) == 4
    from harness.launching.plan import evaluations

    count = {t.number: evaluations(lab.search.config(t.asked or {})) for t in [best, *rest]}
    held = [t for t in rest if count[t.number] >= count[best.number] and t.asked != best.asked]
    spared = [t for t in held if t.asked and t.asked["window.interval"] != 7]
    assert spared
    for trial in spared:
        assert (trial.state, len(trial.rewards)) == ("pruned", 2)
        assert trial.why == "worse than trial 0 with 2 seeds"
    for trial in rest:  # what is cheaper than everything before it may be worse
        if all(count[trial.number] < count[t.number] for t in [best, *rest] if t != trial):
            assert trial.state == "complete"


def test_a_run_that_falls_behind_stops_with_a_checkpoint(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = FILE.replace("startup: 50", "startup: 1, warmup: 4").replace(
        "iterations: 6", "iterations: 40"
    )
    text = text.replace(
        "{window.interval: 5, window.size: 4}, {window.interval: 7, window.size: 2}",
        "{window.interval: 7, window.size: 2}",
    ).replace("trials: 6", "trials: 4")
    lab.file.write_text(text.replace("seeds: 2", "seeds: 1").replace("parallel: 2", "parallel: 1"))
    monkeypatch.setattr(screen, "PLAIN_EVERY_S", 0.1)  # an inline run is judged as it is shown
    monkeypatch.setenv("FAKE_CURVE", json.dumps({"seconds": 0.03}))
    assert lab.here() == 0
    behind = [t for t in lab.trials() if "behind the others at iteration" in t.why]
    assert behind
    for trial in behind:
        (run,) = [r for r in lab.run_folders() if r.name.startswith(f"{trial.arm}-seed")]
        assert not (run / "result.json").exists()
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert 4 <= len(lines) < 40
        assert read_attempts(run)[-1].reason == "stopped"
        assert trial.spent == pytest.approx(0.5 * len(lines))
    assert lab.here() == 0  # and stays given up
    assert all(t.state == "pruned" for t in lab.trials() if t.number in {b.number for b in behind})


# ---- stopped and killed ----------------------------------------------------------------------


def check_nothing_lost_or_repeated(lab: SearchLab, total: int = 3) -> None:
    trials = lab.trials()
    assert len(tried(trials)) == total
    assert all(t.state == "complete" for t in tried(trials)), trials
    assert [t.asked for t in trials[:2]] == list(lab.search.enqueue)
    assert len({t.arm for t in tried(trials)}) == total
    assert len(lab.run_folders()) == 2 * total
    for run in lab.run_folders():
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == list(range(6))


def test_a_killed_launcher_and_a_killed_run_lose_and_repeat_nothing(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 3"))
    launcher = lab.launch("--no-confirm", "--jobs", "2", seconds=0.4)
    lab.wait_for(lambda: len(lab.pids()) == 2)
    launcher.kill()
    launcher.wait()  # its output ends with its jobs
    killed, followed = [run for run in lab.run_folders() if lease.is_held(run / "owner")]
    os.kill(read_attempts(killed)[-1].pid, signal.SIGKILL)
    assert lab.here() == 0
    check_nothing_lost_or_repeated(lab)
    assert len(read_attempts(killed)) == 2
    assert len(read_attempts(followed)) == 1


def test_ctrl_c_leaves_checkpoints_and_the_same_command_continues(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 3"))
    launcher = lab.launch("--no-confirm", "--jobs", "2", seconds=0.4)
    lab.wait_for(lambda: bool(lab.pids()))
    with pytest.raises(RunError, match=rf"process {launcher.pid} on \S+ .* already runs this"):
        lab.here()
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130, output
    assert "resumable" in output
    assert not lab.pids()
    assert lab.here() == 0
    check_nothing_lost_or_repeated(lab)


def test_a_trial_that_was_asked_but_got_no_settings_is_asked_on(lab: SearchLab) -> None:
    study = Study(lab.search, lab.folder, None)
    study.enqueue()
    study.study.ask()  # killed before any setting was drawn
    with storage_file(lab.folder).open("a") as journal:
        journal.write('{"op_code": 4, "trial')  # and while it wrote
    assert lab.here() == 0
    assert [t.asked for t in lab.trials()[:2]] == list(lab.search.enqueue)
    assert len(tried(lab.trials())) == 6


def test_a_failure_is_told_and_runs_again_when_asked(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    monkeypatch.setenv("FAKE_CURVE", json.dumps({"raise_arm": "interval=5"}))
    assert lab.here() == 1
    said = capsys.readouterr().out
    assert "trial 0: interval=5,size=4-seed0 failed: ValueError: the fake trainer was told" in said
    assert [t.state for t in lab.trials()] == ["failed", "complete"]
    assert lab.here() == 1  # not again by itself
    assert len(lab.trials()) == 2
    monkeypatch.delenv("FAKE_CURVE")
    assert lab.here(retry="failed") == 0
    assert [t.state for t in lab.trials()] == ["failed", "complete", "complete"]
    assert lab.trials()[2].asked == lab.trials()[0].asked
    assert lab.here(retry="failed") == 0
    assert len(lab.trials()) == 3


def test_what_stays_lost_is_told_as_failed_and_the_search_goes_on(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_retry, "RETRY_PAUSE_S", 0.0)
    lab.file.write_text(
        FILE.replace("trials: 6", "trials: 3").replace("parallel: 2", "parallel: 1")
    )
    monkeypatch.setenv("FAKE_CURVE", json.dumps({"lose_run": "interval=5,size=4-seed1"}))
    assert lab.here() == 1
    trials = lab.trials()
    assert [t.state for t in trials] == ["failed", "complete", "complete"]
    assert trials[0].why == (
        "interval=5,size=4-seed1 was lost and is not tried again: "
        "the fake memory is full: lower the batch"
    )
    (lost,) = [run for run in lab.run_folders() if "interval=5,size=4-seed1" in run.name]
    assert len(read_attempts(lost)) == MAX_TRIES
    monkeypatch.delenv("FAKE_CURVE")
    assert lab.here() == 1  # not again by itself
    assert len(lab.trials()) == 3
    assert lab.here(retry="failed") == 0
    assert [t.state for t in lab.trials()] == ["failed", "complete", "complete", "complete"]
    assert lab.trials()[3].rewards == pytest.approx({0: 0.58, 1: 0.581})


def test_nothing_is_confirmed_before_all_trials_are_over(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_file = lab.root / "reports" / "toy" / "confirm.yaml"
    sweep_file.parent.mkdir(parents=True)
    sweep_file.touch()  # as a report writes it while two settings are complete
    confirmed: list[Path] = []

    def confirm(file: Path, **_: Any) -> int:
        confirmed.append(file)
        return 0

    monkeypatch.setattr(sweeps, "main", confirm)
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    monkeypatch.setenv("FAKE_CURVE", json.dumps({"lose_run": "interval=5,size=4-seed1"}))
    assert lab.here(confirm=True, retry="none") == 1  # `none`: left as it is
    assert [t.state for t in lab.trials()] == ["running", "complete"]
    assert not confirmed
    assert "the best are confirmed when all trials are over" in capsys.readouterr().out
    monkeypatch.delenv("FAKE_CURVE")
    assert lab.here(confirm=True) == 0
    assert confirmed == [sweep_file]


@pytest.mark.parametrize("lock", ["link", "file"])
def test_a_lock_that_a_killed_search_left_does_not_hold_up_the_next(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.chdir(lab.root)
    folder = Path("runs") / "toy"  # relative, as --runs is by default
    Study(lab.search, folder, None).enqueue()
    left = Path(f"{storage_file(folder)}.lock")
    if lock == "link":
        left.symlink_to(storage_file(folder))  # as Optuna made it: it leads nowhere
    else:
        left.touch()
    begin = time.monotonic()
    with _limit(20):
        Study(lab.search, folder, None).ask()
    assert time.monotonic() - begin < 10
    assert not left.is_symlink()
    assert not left.exists()


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """TimeoutError where what is inside takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_full_disk_under_the_trials_is_one_line_and_the_same_command_continues(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna.storages.journal import JournalFileBackend

    lab.file.write_text(FILE.replace("trials: 6", "trials: 3"))
    whole, written = JournalFileBackend.append_logs, []

    def append(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        written.append(logs)
        if len(written) > 18:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, logs)

    with monkeypatch.context() as full:
        full.setattr(JournalFileBackend, "append_logs", append)
        with pytest.raises(RunError, match=r"study.journal: No space left .* continues") as raised:
            lab.here()
    assert "\n" not in str(raised.value)
    ended = [read_attempts(run)[-1].reason for run in lab.run_folders()]
    assert set(ended) <= {"finished", "stopped"}  # no run is to blame
    assert ended
    assert lab.here() == 0
    check_nothing_lost_or_repeated(lab)


def test_when_the_storage_breaks_the_runs_stop_with_a_checkpoint(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = lab.root / "trials.db"
    whole = Study.wants_more

    def breaks(study: Study) -> bool:
        if len(lab.pids()) == 2:
            with sqlite3.connect(base) as connection:
                connection.execute("ALTER TABLE trials RENAME TO away")
        return whole(study)

    monkeypatch.setenv("PYTHONPATH", SEARCHED)
    monkeypatch.setenv("FAKE_CURVE", json.dumps({"seconds": 1.5}))
    monkeypatch.setattr(Study, "wants_more", breaks)
    lab.file.write_text(FILE.replace("parallel: 2", "parallel: 9").replace("seeds: 2", "seeds: 1"))
    with pytest.raises(RunError, match=r"^--storage sqlite:///.*the same command continues$"):
        lab.here(executor="local", jobs=2, storage=f"sqlite:///{base}")
    assert not lab.pids()
    assert {read_attempts(run)[-1].reason for run in lab.run_folders()} == {"stopped"}


def test_a_kill_between_reason_and_verdict_gives_no_trial_up(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    study = Study(lab.search, lab.folder, None)
    study.enqueue()
    trial = study.ask()
    study.note(trial, why="a run failed")  # killed before it was told as failed
    assert lab.here() == 0
    assert [t.state for t in lab.trials()] == ["complete", "complete"]


def test_a_kill_between_decision_and_end_still_gives_a_trial_up(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    study = Study(lab.search, lab.folder, None)
    study.enqueue()
    study.note(study.ask(), dropped="behind the others")
    assert lab.here() == 0
    first = lab.trials()[0]
    assert (first.state, first.why) == ("pruned", "behind the others")


def test_settings_that_failed_and_then_came_through_are_not_run_a_third_time(
    lab: SearchLab,
) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    study = Study(lab.search, lab.folder, None)
    study.enqueue()
    study.tell(study.ask(), "failed", why="a run failed")
    study.enqueue(again=True)
    assert lab.here() == 0
    before = {run.name: len(read_attempts(run)) for run in lab.run_folders()}
    study = Study(lab.search, lab.folder, None)
    study.study.enqueue_trial(dict(lab.search.enqueue[0]))
    assert lab.here() == 0
    last = lab.trials()[-1]
    assert (last.state, last.free, last.why) == (
        "complete",
        True,
        "the same settings as trial 2",
    )
    assert {run.name: len(read_attempts(run)) for run in lab.run_folders()} == before


# ---- around it -------------------------------------------------------------------------------


def test_a_finished_run_of_another_sweep_is_taken_over(lab: SearchLab) -> None:
    run = runs_of(lab.search, Trial(0, "running", lab.search.enqueue[0]))[0]
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    assert lab.here() == 0
    other = lab.root / "runs" / "other"
    lab.folder.rename(other)
    shutil.rmtree(other / "launcher")
    (other / "study.journal").unlink()
    (before,) = read_attempts(other / run.folder_name)
    assert lab.here() == 0
    assert read_attempts(lab.folder / run.folder_name) == (before,)
    assert (lab.folder / run.folder_name).samefile(other / run.folder_name)
    assert lab.trials()[0].rewards == pytest.approx({0: 0.58, 1: 0.581})


def test_the_plan_and_the_status_write_nothing(
    lab: SearchLab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lab.here(plan=True) == 0
    said = capsys.readouterr().out
    assert "6 trials of up to 2 seeds, at most 12 runs, 2 trials at once" in said
    assert "window.interval: 1 to 9" in said
    assert "τ = 5 · w = 4: " in said
    assert lab.here(status=True) == 0
    assert "no trial yet" in capsys.readouterr().out
    assert not (lab.root / "runs").exists()
    assert lab.here() == 0
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in lab.folder.rglob("*") if p.is_file()}
    assert lab.here(status=True) == 0
    assert "trial 1 (τ = 7 · w = 2): composition 0.601, 1,200 evaluations, 3.0 s" in (
        capsys.readouterr().out
    )
    assert {p: p.stat().st_mtime_ns for p in lab.folder.rglob("*") if p.is_file()} == before


def test_a_look_makes_no_database(lab: SearchLab, capsys: pytest.CaptureFixture[str]) -> None:
    base = lab.root / "trials.db"
    assert lab.here(plan=True, storage=f"sqlite:///{base}") == 0
    assert lab.here(status=True, storage=f"sqlite:///{base}") == 0
    assert capsys.readouterr().out.count("no trial yet") == 2
    assert not base.exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg://me:SECRET@host:1/base", "postgresql+psycopg://host:1/base"),
        ("postgresql://host/base?user=me&password=SECRET", "postgresql://host/base"),
        ("postgresql://host/base?user=me&password=SEC@RET", "postgresql://..."),
        ("postgresql://me:SEC?RET@host/base", "postgresql://..."),
        ("postgresql://me:SEC@RET@host/base", "postgresql://host/base"),
        ("postgresql:me:SECRET@host/base", "(not a URL)"),
        ("postgresql//me:SECRET@host/base", "(not a URL)"),
        ("me:SECRET://host", "(not a URL)"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_a_storage_is_named_without_its_password(url: str, words: str) -> None:
    assert where(Path("runs"), url) == words


@pytest.mark.parametrize("url", ["trials.db", "postgresql:me:SECRET@host/base", "://host"])
def test_what_is_no_url_is_refused_without_repeating_it(lab: SearchLab, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^--storage: is not a URL; write it such as sqlite"):
        lab.here(storage=url)
    assert not lab.folder.exists()


def test_one_thing_is_asked_at_a_time(lab: SearchLab) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        lab.here(plan=True, status=True)


@pytest.mark.skipif(
    shutil.which("optuna-dashboard") is None
    and not (Path(sys.executable).parent / "optuna-dashboard").exists(),
    reason="no optuna-dashboard",
)
def test_optuna_dashboard_opens_the_storage(lab: SearchLab) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 2"))
    assert lab.here() == 0
    program = Path(sys.executable).parent / "optuna-dashboard"
    port = 20000 + os.getpid() % 20000
    server = subprocess.Popen(
        [str(program), str(storage_file(lab.folder)), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found: list[Any] = []

        def answers() -> bool:
            with contextlib.suppress(OSError):
                url = f"http://127.0.0.1:{port}/api/studies"
                with urllib.request.urlopen(url, timeout=5) as reply:
                    found[:] = json.load(reply)["study_summaries"]
            return bool(found)

        lab.wait_for(answers)
        assert [study["study_name"] for study in found] == ["toy"]
        url = f"http://127.0.0.1:{port}/api/studies/{found[0]['study_id']}?after=0"
        with urllib.request.urlopen(url, timeout=20) as reply:
            trials = json.load(reply)["trials"]
        assert [t["state"] for t in trials] == ["Complete", "Complete"]
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of its own, on a socket in a folder of the test."""
    import tempfile

    initdb = shutil.which("initdb") or next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if initdb is None:
        pytest.skip("no PostgreSQL here (initdb)")
    place = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path is short, and not root's alone
    as_user = []
    if os.geteuid() == 0:
        shutil.chown(place, "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    real = Path(initdb).resolve().parent
    run = {"check": True, "stdout": subprocess.DEVNULL, "cwd": place}
    subprocess.run(
        [
            *as_user,
            str(real / "initdb"),
            "-D",
            str(place / "data"),
            "-A",
            "trust",
            "-U",
            "postgres",
        ],
        **run,  # type: ignore[call-overload]
    )
    options = f"-c listen_addresses='' -c unix_socket_directories='{place}' -c fsync=off"
    control = [*as_user, str(real / "pg_ctl"), "-D", str(place / "data"), "-w"]
    subprocess.run([*control, "-o", options, "-l", str(place / "log"), "start"], **run)  # type: ignore[call-overload]
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={place}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]
        shutil.rmtree(place)


def test_postgresql_holds_the_trials_of_a_search_that_was_killed(
    lab: SearchLab, postgres: str
) -> None:
    lab.file.write_text(FILE.replace("trials: 6", "trials: 3"))
    study = Study(lab.search, lab.folder, postgres)
    study.enqueue()
    study.ask()
    study.study.ask()  # killed before any setting was drawn
    assert lab.here(storage=postgres) == 0
    assert not storage_file(lab.folder).exists()
    trials = lab.trials(postgres)
    assert [t.asked for t in trials[:2]] == list(lab.search.enqueue)
    assert [t.state for t in tried(trials)] == ["complete"] * 3
    assert len(lab.run_folders()) == 6


def test_a_storage_that_cannot_be_reached_is_one_line_without_a_password(lab: SearchLab) -> None:
    with pytest.raises(RunError) as raised:
        lab.here(storage="postgresql+psycopg://me:secret@127.0.0.1:1/nothing")
    said = str(raised.value)
    assert said.startswith("--storage postgresql+psycopg://127.0.0.1:1/nothing: ")
    assert "secret" not in said
    assert "\n" not in said


def test_the_best_are_confirmed_on_seeds_that_the_search_never_saw(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.searching.report import write_report

    monkeypatch.setattr(command, "write_report", write_report)
    assert lab.here(confirm=True) == 0
    report = lab.root / "reports" / "toy"
    sweep = load_sweep(report / "confirm.yaml")
    assert sweep.seeds == (1000, 1001, 1002)
    assert sweep.reference == "reference"
    assert sweep.arms[0].settings == lab.search.enqueue[0]
    front = [t for t in tried(lab.trials()) if t.number != 0]
    best = max(front, key=lambda t: (sum(t.rewards.values()), -(t.evaluations or 0), -t.number))
    assert sweep.arms[1].name == f"trial-{best.number}"
    assert sweep.arms[1].settings == best.asked
    done = sorted((lab.root / "runs" / "toy-confirm").glob("*/result.json"))
    assert len(done) == len(sweep.runs)
    # The known truth: interval 7 is better than 5 by 0.02 with every seed, so nothing varies.
    page = (report / "index.html").read_text()
    assert "of many noisy values the highest is too high" in page
    assert "1000, 1001, 1002" in page
    capsys.readouterr()


def test_a_fresh_clone_draws_the_same_report_to_the_byte(
    lab: SearchLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.searching.report import write_report

    lab.file.write_text(FILE.replace("trials: 6", "trials: 10").replace("seeds: 2", "seeds: 1"))
    assert lab.here() == 0
    runs, reports = lab.root / "runs", lab.root / "reports"
    write_report(lab.search, runs, reports, None)
    names = {p.name for p in (reports / "toy" / "figures").glob("*.png")}
    assert names == {"front.png", "history.png", "slices.png", "importances.png"}
    first = {p: p.read_bytes() for p in sorted(reports.rglob("*")) if p.is_file()}
    shutil.rmtree(runs)
    for path in first:
        if path.name not in ("trials.parquet", "made.json"):
            path.unlink()
    write_report(lab.search, runs, reports, None)
    again = {p: p.read_bytes() for p in sorted(reports.rglob("*")) if p.is_file()}
    assert [p for p in first if first[p] != again.get(p)] == []
    assert first.keys() == again.keys()
