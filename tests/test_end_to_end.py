"""The real trainer under the real harness: what a newcomer runs, and what a kill leaves of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "sweeps" / "smoke.yaml"


def command(module: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(module: str, *arguments: str | Path, expect: int = 0) -> str:
    done = subprocess.run(command(module, *arguments), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def reproducible(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file without what differs between identical runs."""
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not k.startswith(("seconds", "memory"))} for line in lines
    ]


def folders(runs: Path) -> dict[str, Path]:
    return {result.parent.name: result.parent for result in runs.glob("smoke/*/result.json")}


def kill_one_job(runs: Path, launcher: subprocess.Popen[str]) -> str:
    """SIGKILL the first job that is seen to have trained for three iterations; its folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and launcher.poll() is None:
        for metrics in runs.glob("smoke/*/metrics.jsonl"):
            if (
                metrics.read_text().count("\n") >= 3
                and not (metrics.parent / "result.json").exists()
            ):
                attempt = json.loads((metrics.parent / "attempts" / "1.json").read_text())
                os.kill(attempt["pid"], signal.SIGKILL)
                return metrics.parent.name
        time.sleep(0.01)
    raise AssertionError(f"no job was seen at work: {launcher.communicate()}")


def test_a_killed_job_leaves_the_same_bytes_as_an_undisturbed_sweep(tmp_path: Path) -> None:
    disturbed, calm, reports = tmp_path / "disturbed", tmp_path / "calm", tmp_path / "reports"
    launcher = subprocess.Popen(
        command("harness.sweep", SMOKE, "--runs", disturbed, "--reports", reports),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed = kill_one_job(disturbed, launcher)
    output, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, output
    assert "4 of 4 runs finished" in output
    assert str(reports / "smoke" / "index.html") in output
    attempts = sorted((folders(disturbed)[killed] / "attempts").iterdir())
    assert [json.loads(a.read_text())["reason"] for a in attempts] == ["killed", "finished"]

    # Another executor, another process: the bytes do not depend on either.
    run("harness.sweep", SMOKE, "--runs", calm, "--reports", reports, "--executor", "inline")
    assert folders(disturbed).keys() == folders(calm).keys()
    assert len(folders(calm)) == 4
    for name, folder in folders(calm).items():
        other = folders(disturbed)[name]
        for file in ("metrics.jsonl", "eval.jsonl"):
            assert reproducible(folder / file) == reproducible(other / file), name
        newest = sorted((folder / "checkpoints").iterdir())[-1].name
        assert newest == "000006"
        for weights in ("weights", "average", "optimizer"):
            file = Path("checkpoints", newest, f"{weights}.safetensors")
            assert (folder / file).read_bytes() == (other / file).read_bytes(), (name, weights)

    page = (reports / "smoke" / "index.html").read_text()
    assert "cannot conclude" in page.lower()  # two seeds say nothing about chance

    state = json.loads(run("harness.status", SMOKE, "--runs", disturbed, "--json"))
    assert state["counts"] == {"finished": 4}
    before = {p: p.stat().st_mtime_ns for p in disturbed.rglob("*")}
    assert "nothing to run" in run("harness.sweep", SMOKE, "--runs", disturbed, "--plan")
    run("harness.sweep", SMOKE, "--runs", disturbed, "--reports", reports)
    changed = [
        p for p in disturbed.rglob("*") if p.is_file() and p.stat().st_mtime_ns != before.get(p)
    ]
    # Its lease, and copies for the next report.
    assert {p.parent.name for p in changed} <= {"launcher", ".cache"}
    run("harness.report", SMOKE, "--runs", disturbed, "--reports", reports)
