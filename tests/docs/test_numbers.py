"""The numbers on the pages are those that the code computes and the commands print."""

import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import interval_coverage
from harness import cost
from harness.study import paper
from mixgrpo.maths.advantages import group_advantages
from mixgrpo.maths.schedule import sigma_schedule
from mixgrpo.maths.steps import Kernel, step_coefficients
from mixgrpo.maths.window import Strategy, Window
from mixgrpo.sampling.plan import Plan, make_plan
from mixgrpo.settings.config import SamplerConfig
from tests.docs.commands import ROOT, told

DOCS = ROOT / "docs"


def table(page: str, head: str) -> list[list[str]]:
    """The cells of the rows below a table's head."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{re.escape(head)}\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found.splitlines()]


# ---- docs/mathematics.md


def test_the_golden_values_are_those_of_the_code() -> None:
    grid = [float(s) for s in sigma_schedule(25, 3.0, torch.float64)]

    def step(i: int, kind: Kernel, eta: float) -> tuple[float, float, float]:
        return step_coefficients(grid[i], grid[i + 1], eta=eta, kind=kind, sigma_max=grid[1])

    rows = table("mathematics.md", "| i | σ | dt | g | std | cₓ | cᵥ | std of dance |")
    assert len(rows) == 8
    for row in rows:
        i, dt = int(row[0]), grid[int(row[0]) + 1] - grid[int(row[0])]
        x, v, std = step(i, "flow", 0.7)
        values = (grid[i], dt, std / math.sqrt(-dt), std, x, v, step(i, "dance", 0.3)[2])
        for shown, value in zip(row[1:], values, strict=True):
            assert shown == f"{value:.{len(shown.partition('.')[2])}f}", row


def test_the_golden_values_are_those_of_the_tests_of_steps() -> None:
    """Which were computed independently."""
    from tests.mixgrpo.maths.test_steps import GOLDEN

    rows = table("mathematics.md", "| i | σ | dt | g | std | cₓ | cᵥ | std of dance |")
    assert [[float(cell) for cell in row] for row in rows] == [list(row) for row in GOLDEN]


def test_the_counts_are_those_of_the_code() -> None:
    def plan(first: int, ratio: float = 1.0) -> Plan:
        return make_plan(SamplerConfig(steps=25, tail_ratio=ratio), range(first, first + 4))

    last = [Window(25, 4, tau, 1, "constant").start_at(299) for tau in (15, 20, 25, 30)]
    rewards = torch.tensor([[1.0] + 11 * [0.0]], dtype=torch.float64)
    assert [row[1] for row in table("mathematics.md", "| what | value |")] == [
        str(plan(6).evaluations(12)),
        str(plan(6).evaluations(12, shared_noise=False)),
        str(plan(6, 0.4).evaluations(12)),
        str(plan(6, 0.4).evaluations(12, shared_noise=False)),
        str(plan(6).update_evaluations(12, updates=4)),
        str(plan(6).update_evaluations(12, updates=4, shared_noise=False)),
        str(plan(0, 0.2).steps),
        ", ".join(map(str, last)),
        f"{float(group_advantages({'r': rewards}, {'r': 1.0}).max()):.3f}",
    ]


def test_the_exponential_decay_is_the_constant_interval_within_the_papers_run() -> None:
    """docs/faq.md says so."""

    def path(strategy: Strategy) -> list[int]:
        return [Window(25, 4, 25, 1, strategy).start_at(m) for m in range(300)]

    assert path("exp-decay") == path("constant")


# ---- docs/reproducing.md


def test_the_hours_are_those_that_the_command_prints() -> None:
    text = (DOCS / "reproducing.md").read_text(encoding="utf-8")
    assert cost.methods() in text
    # An independent sum: seconds, iterations and GPUs of the paper.
    assert round(150.839 * 300 * 32 / 3600) == 402
    assert "| MixGRPO | 150.839 | 12.6 | 402 |" in text


def test_the_sweeps_hours_are_those_that_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If not: put what the command on the page prints into it."""
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    (tmp_path / "prompts").mkdir()
    for name in ("train", "held_out"):
        (tmp_path / "prompts" / f"{name}.txt").write_text(f"a prompt to {name}\n")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "reproducing.md").read_text(encoding="utf-8")
    (command,) = [c for c in told(text) if c.startswith("python -m harness.cost sweeps/")]
    files = [Path(word) for word in command.split()[3:]]
    assert len(files) == 7
    assert cost.sweeps(files, "flux") in text


# ---- docs/reading-a-report.md


def test_the_coverage_is_what_the_command_prints() -> None:
    """Its first rows, which do not depend on the later ones."""
    text = (DOCS / "reading-a-report.md").read_text(encoding="utf-8")
    assert interval_coverage.table(2000, seeds=(3,)) in text
    assert interval_coverage.resolution() in text


def test_the_papers_own_spread_is_as_told() -> None:
    text = (DOCS / "reading-a-report.md").read_text(encoding="utf-8")
    one = paper.row("main", "MixGRPO-Flash")
    other = paper.row("overhead", "Flash 16")
    assert one["nfe_old"] == other["nfe_old"] == 16
    assert f"{one['ir']:.3f} in one table and {other['ir']:.3f} in another" in " ".join(
        text.split()
    )
    assert paper.row("tau", "20") == paper.row("hybrid", "80")
    differences = [
        abs(paper.row(name, key)["ir"] - paper.row(name, reference)["ir"])
        for name, reference in {
            "tau": "25",
            "strategy": "constant",
            "size": "4",
            "stride": "1",
            "order": "2 midpoint",
        }.items()
        for key in paper.find(name).rows
        if key != reference
    ]
    small = sum(found <= other["ir"] - one["ir"] for found in differences)
    assert small >= len(differences) / 3


# ---- README.md


def test_the_readme_says_of_the_studies_what_their_report_says() -> None:
    report = (ROOT / "reports" / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    said = [line for line in report.splitlines() if line.startswith("* ")]
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What it found")
    text = " ".join(rest.partition("\n## ")[0].split())
    assert len(said) >= 4
    assert [line for line in said if line not in text] == []


def test_the_readme_says_of_the_search_what_its_report_says() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    _, answer, _, cost, *_ = (
        (ROOT / "reports" / "window-search" / "table.md").read_text(encoding="utf-8").split("\n\n")
    )
    assert f"{answer} {cost}" in text


def test_the_readme_says_of_the_first_command_what_its_report_says() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    overall = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    (answer,) = re.findall(r"\[tau\]\(tau/table.md\) \| [^|]+ \| ([^|]+)\. \|", overall)
    assert f"{answer} (8 seeds)" in text
    (row,) = re.findall(r"^\| tau \| 32 of 32.*", overall, re.MULTILINE)
    _, _, _, training, _, evaluation, *_ = (cell.strip() for cell in row.split("|"))
    assert f"trains for {training} hours and evaluates for {evaluation}, summed" in text


def test_the_overview_is_read_in_a_moment() -> None:
    """At most 150 words before its first figure."""
    page = (ROOT / "reports" / "index.html").read_text(encoding="utf-8")
    start = page[page.index("<h1") : page.index("<figure")]
    assert 50 <= len(re.sub("<[^>]+>", " ", start).split()) <= 150
