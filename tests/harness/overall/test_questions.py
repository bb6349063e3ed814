"""The report over all studies: its numbers against independent ones, its bytes and its words."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness import report
from harness.analysis.kept import to_files
from harness.analysis.measurements import gather
from harness.comparison import Comparison
from harness.evidence.resolution import seeds_for_difference
from harness.overall import page as overall_page
from harness.overall import tables as overall_tables
from harness.overall import words as overall_words
from harness.overall.front import Step, distinct, front, points, steps
from harness.overall.glance import findings, glance
from harness.overall.page import write_overall
from harness.overall.questions import Overall, Printed, ask, put_together
from harness.overall.studies import Study, read_study
from harness.reporting import figures
from harness.reporting.tables import Table, tables
from harness.reporting.views import view as views
from harness.runs.source import relative
from harness.stats import mean_interval
from harness.study.spec import Sweep
from harness.text import interval
from mixgrpo.errors import ConfigError
from tests.harness.synthetic import make_sweep, seal, write_runs

EFFECTS = {
    "tau": {"interval=9": -0.09, "interval=12": 0.002},
    "methods": {"interval=9": -0.05, "interval=12": 0.06},
    "overhead": {"interval=6": 0.03},
    "stride": {},
}
COST = {6: 0.5, 9: 0.7, 12: 1.3, 15: 1.0, 18: 1.1}
"""Evaluations and seconds of an arm, as a multiple of its window's."""


def make_sweeps() -> list[Sweep]:
    """tau tells an arm apart, stride does not; methods and overhead share an arm; one is new."""
    small: dict[str, Any] = {"seeds": 4, "iterations": 24}
    sweeps = [
        make_sweep(name="methods", paper=None, **small),
        make_sweep(name="overhead", paper=None, intervals=(6, 15), **small),
        make_sweep(**small),
        make_sweep(name="stride", paper=None, **small),
        make_sweep(name="waiting", paper=None, **small),
        make_sweep(name="trial", paper=None, **small | {"seeds": 2}),
    ]
    return [replace(sweep, file=Path(f"sweeps/{sweep.name}.yaml")) for sweep in sweeps]


def keep(sweep: Sweep, runs: Path, reports: Path) -> None:
    """The measurements that a report keeps, without the report."""
    folder = reports / sweep.report_name
    for name, content in to_files(
        sweep, gather(sweep, runs, folder), relative(sweep.file, folder)
    ).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def change_costs(sweep: Sweep, runs: Path, with_core: bool = True) -> None:
    for run in sweep.runs:
        folder = runs / sweep.name / run.folder_name
        if not folder.exists():
            continue
        factor = COST[run.config.window.interval]
        result = json.loads((folder / "result.json").read_text())
        result["evaluations_computed"] = int(factor * result["evaluations_computed"])
        (folder / "result.json").write_text(json.dumps(result))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            for key in line:
                line[key] *= factor if key.startswith("seconds_") else 1
            if with_core:
                line["seconds_cpu"] = 0.8 * line["seconds_total"]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        seal(folder)


@pytest.fixture(scope="module")
def sweeps() -> list[Sweep]:
    return make_sweeps()


@pytest.fixture(scope="module")
def reports(sweeps: list[Sweep], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept measurements of all sweeps that have run, and the overall report of them."""
    folder = tmp_path_factory.mktemp("overall")
    for sweep in sweeps:
        if sweep.name == "waiting":
            continue
        skip = frozenset({("interval=18", 3)}) if sweep.name == "stride" else frozenset()
        write_runs(sweep, folder / "runs", effects=EFFECTS.get(sweep.name), sd=0.01, skip=skip)
        change_costs(sweep, folder / "runs")
        keep(sweep, folder / "runs", folder / "reports")
    write_overall(sweeps, folder / "no-runs", folder / "reports")
    return folder / "reports"


@pytest.fixture(scope="module")
def studies(sweeps: list[Sweep], reports: Path) -> list[Study]:
    return [read_study(s, reports) for s in sweeps if s.name not in ("waiting", "trial")]


@pytest.fixture(scope="module")
def overall(studies: list[Study], sweeps: list[Sweep]) -> Overall:
    return put_together(studies, [(sweeps[4], "no results yet")])


def after(reports: Path, study: str) -> pd.DataFrame:
    runs = pd.read_parquet(reports / study / "runs.parquet")
    return runs.pivot(index="seed", columns="arm", values="after_composition")


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words alone: drawing takes seconds."""
    names = ("questions", "pareto", "sensitivity")
    drawn = [figures.Picture(name, name, name, b"", b"") for name in names]
    monkeypatch.setattr(overall_page, "draw", lambda _: drawn)


def floats(text: str) -> list[float]:
    return [float(t.replace("−", "-")) for t in re.findall(r"[+−]?\d+\.\d+", text)]


def row_of(table: Table, name: str) -> dict[str, str]:
    (row,) = (row for row in table.rows if row[0] == name)
    return dict(zip(table.columns, row, strict=True))


def test_the_largest_effect_is_that_of_the_frames(overall: Overall, reports: Path) -> None:
    row = row_of(overall_tables.questions_table(overall), "tau")
    values = after(reports, "tau")
    differences = values["interval=9"] - values["interval=15"]
    found = comparison(overall, "tau", "interval=9")
    low, high = stats.t.interval(
        1 - 0.05 / 3,
        found.spread.degrees_of_freedom,
        differences.mean(),
        found.spread.sd / math.sqrt(4),
    )
    assert found.spread.sd >= differences.std(ddof=1) - 1e-12
    assert floats(row["largest effect"])[:3] == pytest.approx(
        [differences.mean(), low, high], abs=5e-4
    )
    assert "(τ = 9)" in row["largest effect"]
    assert "τ = 9 is worse than" in row["answer"]
    assert row["seeds for the margin"] == "–"


def comparison(overall: Overall, study: str, arm: str) -> Comparison:
    (question,) = (q for q in overall.questions if q.study.sweep.name == study)
    found = question.study.analysis.by_name(arm).comparison
    assert found is not None
    return found


def undecided(study: Study, margin: float) -> Study:
    """The same with a margin within which nothing is equal."""
    arms = tuple(
        replace(r, comparison=replace(r.comparison, verdict="undecided", margin=margin))
        if r.comparison is not None
        else r
        for r in study.analysis.arms
    )
    return replace(study, analysis=replace(study.analysis, arms=arms))


def test_an_undecided_question_says_how_many_seeds_would_do(studies: list[Study]) -> None:
    stride = undecided(studies[3], margin=0.004)
    overall = put_together([stride], [])
    (question,) = overall.questions
    assert question.kind == "undecided"
    row = row_of(overall_tables.questions_table(overall), "stride")
    effect = question.effect
    assert effect is not None
    found = seeds_for_difference(effect.spread, len(effect.seeds), 0.004, 0.05 / 3)
    cell = f"{found.estimate:,.0f} ({found.low:,.0f} to {found.high:,.0f})"
    assert row["seeds for the margin"] == cell
    assert found.estimate > 10
    assert "undecided" in row["answer"]
    assert row["seeds"] == "3 to 4 of 4"
    assert findings(overall) == ["The seeds do not decide, at least for some arms: stride."]


def test_every_arm_has_the_verdict_of_its_interval(overall: Overall) -> None:
    claimed = 0
    table = glance(overall)
    for question in overall.questions:
        analysis = question.study.analysis
        row = row_of(table, question.study.sweep.name)
        counts = dict.fromkeys(("better", "worse", "equal", "undecided"), 0)
        for c in analysis.compared:
            assert c.margin is not None
            low, high = c.simultaneous.low, c.simultaneous.high
            if -c.margin <= low and high <= c.margin:
                counts["equal"] += 1
            elif low <= 0 <= high:
                counts["undecided"] += 1
            else:
                verdict = "better" if low > 0 else "worse"
                counts[verdict] += 1
                claimed += 1
                words = rf"{analysis.label(c.arm)}\b[^;]*\b{verdict} than"
                assert re.search(words, question.answer), (question.answer, c.arm)
        cell = row["reward at equal iterations"]
        for verdict, count in counts.items():
            assert (verdict in cell) == (count > 0), (cell, counts)
    assert claimed


def test_the_first_sentences_name_every_study_once(overall: Overall) -> None:
    said = " ".join(findings(overall))
    for question in overall.questions:
        assert re.search(rf"\b{question.study.sweep.name}\b", said)
    assert "Settings that change the reward: methods, overhead and tau." in said
    assert "Settings that differ by less than the margin: stride." in said
    assert len(said.split()) <= 150


def test_the_number_of_false_claims_to_expect_is_said(studies: list[Study]) -> None:
    tau = studies[2]
    (others,) = (t for t in tables(tau.analysis) if "the other rewards" in t.title.lower()[-60:]
                 and "Compared" in t.title)  # fmt: skip
    with_interval = [column for column in zip(*others.rows, strict=True) if "[" in "".join(column)]
    families = 1 + len(tau.at_equal_cost) + len(with_interval)
    claims = sum(
        "better" in cell or "worse" in cell
        for table in tables(tau.analysis)
        if "Compared with" in table.title
        for row in table.rows
        for cell in row[1:]
    )
    claims += sum(
        c.simultaneous.sign != 0 and c.verdict != "equal"
        for of in tau.at_equal_cost.values()
        for c in of.values()
    )
    said = overall_words.exploratory(put_together([tau], []))
    assert said.startswith(f"Better and worse stand here {claims} times, in {families} groups")
    assert f"about {0.05 * families:.1f} of the groups would make a false claim" in said


def test_arms_are_compared_at_equal_cost(overall: Overall, reports: Path) -> None:
    metrics = pd.read_parquet(reports / "tau" / "metrics.parquet")
    evals = pd.read_parquet(reports / "tau" / "evals.parquet")
    curves = {}
    for (arm, seed), lines in metrics.groupby(["arm", "seed"], observed=True):
        own = evals[(evals["arm"] == arm) & (evals["seed"] == seed)]
        spent = np.concatenate([[0.0], lines["seconds_cpu"].cumsum()])[own["iteration"]]
        curves[arm, seed] = (spent, own["reward_composition_mean"])
    least = min(spent[-1] for spent, _ in curves.values())
    at = {run: np.interp(least, spent, reward) for run, (spent, reward) in curves.items()}
    (question,) = (q for q in overall.questions if q.study.sweep.name == "tau")
    found = question.study.at_equal_cost["seconds"]
    for arm in (9, 12, 18):
        differences = [at[f"interval={arm}", s] - at["interval=15", s] for s in range(4)]
        assert found[f"interval={arm}"].simultaneous.mean == pytest.approx(np.mean(differences))
    assert found["interval=9"].verdict == "worse"
    assert row_of(glance(overall), "tau")["at equal seconds"].startswith("worse: τ = 9")


def test_what_is_better_for_the_same_cost_is_said_first(studies: list[Study]) -> None:
    tau = next(study for study in studies if study.sweep.name == "tau")
    worse = tau.at_equal_cost["seconds"]["interval=9"]
    better = {"evaluations": {"interval=9": replace(worse, verdict="better")}}
    changed = put_together([replace(tau, at_equal_cost=better)], [])
    expected = "For the same network evaluations, τ = 9 beats τ = 15 by 0."
    assert any(text.startswith(expected) for text in findings(changed))
    nothing = put_together([replace(tau, at_equal_cost={})], [])
    assert not any("for the same" in text for text in findings(nothing))
    assert row_of(glance(nothing), "tau")["at equal seconds"] == "–"


def test_the_published_differences_stand_beside_with_the_papers_own_noise(
    overall: Overall,
) -> None:
    row = row_of(overall_tables.questions_table(overall), "tau")
    # Rows 15 to 30 of the paper's table, minus its 25.
    assert row["published differences"].split("; ")[0] == "ImageReward −0.120 (15 − 25)"
    assert row["published: against the paper's noise"].startswith("ImageReward beyond")
    (said,) = overall_words.of_the_paper(overall)
    assert "0.030 to 0.077" in said
    assert "1 has a difference beyond the largest" in said


def test_what_a_larger_study_compares_too_is_shown_there(studies: list[Study]) -> None:
    (tau,) = (study for study in studies if study.sweep.name == "tau")
    arms = tuple(arm for arm in tau.sweep.arms if arm.name in ("interval=9", "interval=15"))
    runs = tuple(run for run in tau.sweep.runs if run.arm in {arm.name for arm in arms})
    references = {arm.name: tau.sweep.reference for arm in arms}
    part = replace(tau, sweep=replace(tau.sweep, name="part", arms=arms, runs=runs))
    assert part.sweep.references == references
    assert distinct([part, tau]) == [tau]
    assert distinct([tau, part]) == [tau]
    assert distinct([part]) == [part]


def test_the_front_is_that_of_every_pair(studies: list[Study]) -> None:
    of = points(studies)
    for cost in ("seconds", "evaluations"):
        by_hand = {
            p.label
            for p in of
            if not any(
                q.cost[cost].mean <= p.cost[cost].mean and q.reward.mean > p.reward.mean for q in of
            )
        }
        found = front(of, cost)
        assert {p.label for p in found} == by_hand
        assert len(found) > 1
        assert [p.cost[cost].mean for p in found] == sorted(p.cost[cost].mean for p in found)


def test_arms_of_the_front_are_compared_seed_by_seed(studies: list[Study], reports: Path) -> None:
    of = points(studies)
    found = steps(of, "seconds")
    assert len(found) == len(of) - 1
    (step,) = (s for s in found if s.point.label == "τ = 12")
    assert step.against.label == "τ = 6"
    own, other = after(reports, "methods")["interval=12"], after(reports, "overhead")["interval=6"]
    differences = own - other
    # The other arm is chosen by the same rewards: every pair could have been it.
    low, high = stats.t.interval(
        1 - 0.05 / math.comb(len(of), 2), 3, differences.mean(), differences.std(ddof=1) / 2
    )
    assert (step.difference.low, step.difference.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1, 0.1, 0.1, 0.1], "unknown"),
        ([0.0, 0.0, 0.0], "unknown"),
        ([0.1, 0.2], "unknown"),
        ([], "unknown"),
        ([0.1, 0.11, 0.12], "higher"),
        ([-0.1, -0.11, -0.12], "lower"),
        ([0.1, -0.1, 0.0], "not significant"),
    ],
)
def test_a_difference_that_no_seed_changes_is_not_told_apart(
    values: list[float], verdict: str, overall: Overall, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = sorted(overall.points, key=lambda p: p.cost["evaluations"].mean)[:2]
    step = Step(b, a, mean_interval(values))
    assert step.verdict == verdict
    for module in (overall_tables, overall_words):
        monkeypatch.setattr(module, "steps", lambda *_: [step])
        monkeypatch.setattr(module, "front", lambda *_: [a, b])
    table = overall_tables.front_table(overall)
    assert table is not None
    cell = row_of(table, b.label)["to the best that takes no more evaluations"]
    assert cell.endswith("significant") == (verdict != "unknown")
    said = overall_words.front_sentences(overall)[1]
    assert ("these are significantly different" in said) == (verdict == "higher")
    assert ("cannot be judged" in said) == (verdict == "unknown")


def test_a_run_that_two_studies_share_is_one_point_and_costs_once(
    studies: list[Study], overall: Overall, reports: Path
) -> None:
    labels = [(p.study, p.label) for p in points(studies)]
    assert ("methods", "τ = 15") in labels
    assert ("overhead", "τ = 15") not in labels
    assert ("overhead", "τ = 6") in labels
    said = overall_words.same_schedules(overall)
    assert "τ = 15 (methods) is the same as τ = 15 in another study." in said
    frames = [pd.read_parquet(reports / s.sweep.name / "runs.parquet") for s in studies]
    finished = pd.concat(frames).query("state == 'finished'").drop_duplicates("hash")
    total = dict(
        zip(
            overall_tables.costs_table(overall).columns,
            overall_tables.costs_table(overall).rows[-1],
            strict=True,
        )
    )
    assert total["runs"] == str(len(finished))
    hours = float(finished["seconds_total"].sum()) / 3600
    assert float(total["training, hours"]) == pytest.approx(hours, abs=0.005)


def test_what_is_missing_is_listed_and_trials_are_not(overall: Overall, reports: Path) -> None:
    said = overall_words.incomplete(overall)
    assert said == [
        "stride: 1 of 16 runs are not finished; its arms have at least 3 of 4 seeds.",
        "waiting: no results yet.",
    ]
    page = (reports / "index.html").read_text()
    assert "waiting: no results yet." in page
    assert "trial" not in page


class Page(HTMLParser):
    """Addresses and tags of a page; an error where tags do not nest."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.sources += [found["src"] or ""] if "src" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_links_to_what_is_there(reports: Path) -> None:
    text = (reports / "index.html").read_text()
    page = Page(text)
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}
    assert "prefers-color-scheme: dark" in text
    made = {"index.html", "table.md", "table.csv"}  # of the studies' own reports
    markdown = re.findall(r"\]\(([^)]+)\)", (reports / "README.md").read_text())
    for link in {*page.links, *markdown}:
        assert (reports / link).exists() or Path(link).name in made, link
        assert (reports / link).parent.is_dir()
    assert "figures/questions.png" in markdown


def contents(folder: Path) -> dict[str, bytes]:
    files = ("index.html", "README.md", "tables.tex")
    figures = sorted(p.relative_to(folder).as_posix() for p in (folder / "figures").iterdir())
    return {name: (folder / name).read_bytes() for name in (*files, *figures)}


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from typing import Any
from tests.harness.overall.test_questions import make_sweeps
from harness.overall.page import write_overall
write_overall(make_sweeps(), Path(sys.argv[2]) / "no-runs", Path(sys.argv[2]))
"""


def test_another_process_writes_the_same_bytes(reports: Path, tmp_path: Path) -> None:
    kept = tmp_path / "reports"
    shutil.copytree(reports, kept)
    before = contents(kept)
    assert {f"figures/{n}.{k}" for n in ("pareto", "questions", "sensitivity")
            for k in ("png", "pdf")} < set(before)  # fmt: skip
    for name in before:
        (kept / name).unlink()
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[3]), str(kept)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert contents(kept) == before


def test_unchanged_measurements_are_not_read_again(
    sweeps: list[Sweep],
    reports: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_pictures: None,
) -> None:
    kept, runs = tmp_path / "reports", tmp_path / "runs"
    shutil.copytree(reports, kept)
    runs.mkdir()
    read: list[str] = []

    def counted(sweep: Sweep, place: Path) -> Study:
        read.append(sweep.name)
        return read_study(sweep, place)

    monkeypatch.setattr(overall_page, "read_study", counted)
    write_overall(sweeps, runs, kept)
    assert read == ["methods", "overhead", "tau", "stride"]
    write_overall(sweeps, runs, kept)
    assert len(read) == 4
    (kept / "README.md").write_text("edited")
    write_overall(sweeps, runs, kept)
    assert len(read) == 8
    assert "edited" not in (kept / "README.md").read_text()
    file = kept / "tau" / "runs.parquet"
    frame = pd.read_parquet(file)
    frame["after_composition"] -= 0.01 * (frame["arm"] == "interval=9")
    frame.to_parquet(file, index=False)
    text = (kept / "README.md").read_text()
    write_overall(sweeps, runs, kept)
    assert len(read) == 12
    assert (kept / "README.md").read_text() != text


def test_measurements_of_another_configuration_are_named_and_left_out(
    sweeps: list[Sweep], reports: Path, tmp_path: Path, small_pictures: None
) -> None:
    kept = tmp_path / "reports"
    shutil.copytree(reports, kept)
    changed = [make_sweep(seeds=4, iterations=30) if s.name == "tau" else s for s in sweeps]
    text = write_overall(changed, tmp_path / "runs", kept).read_text()
    assert "tau: no results yet of the file as it is now" in text
    assert 'href="stride/index.html"' in text
    assert 'href="tau/index.html"' not in text


def test_no_results_at_all_make_a_page(tmp_path: Path, sweeps: list[Sweep]) -> None:
    page = write_overall(sweeps, tmp_path / "runs", tmp_path / "reports")
    assert "No study has results yet." in page.read_text()
    assert not (tmp_path / "reports" / "figures").exists()


def pdflatex(folder: Path, file: str) -> int:
    """Pages of a document that compiles without an error."""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", file]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]
    pages = re.search(r"\((\d+) pages?,", done.stdout)
    return int(pages[1]) if pages else 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (texlive-latex-base)")
def test_the_tables_compile(reports: Path, studies: list[Study], tmp_path: Path) -> None:
    from harness.reporting.content import content, to_latex

    (tmp_path / "tables.tex").write_bytes((reports / "tables.tex").read_bytes())
    assert pdflatex(tmp_path, "tables.tex") >= 1 + len(studies)
    # A study's own, as a paper would have it; with the signs that a label may have.
    odd = "τ ≥ 1 | 50 % of ŵ & “x” #1_a → β ⟂ 字"
    study = studies[2]
    arms = tuple(replace(r, arm=replace(r.arm, label=odd)) for r in study.analysis.arms)
    (tmp_path / "table.tex").write_text(to_latex(content(replace(study.analysis, arms=arms))))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\usepackage{graphicx}"
        "\\begin{document}\\input{table.tex}\\end{document}"
    )
    assert pdflatex(tmp_path, "paper.tex") >= 1


def test_seconds_are_those_of_a_core_where_every_run_measured_them(tmp_path: Path) -> None:
    sweep = make_sweep(intervals=(9, 15), seeds=3, iterations=12)
    write_runs(sweep, tmp_path / "runs")
    change_costs(sweep, tmp_path / "runs")
    keep(sweep, tmp_path / "runs", tmp_path / "reports")
    study = read_study(sweep, tmp_path / "reports")
    metrics = pd.read_parquet(tmp_path / "reports" / "tau" / "metrics.parquet")
    own = metrics[metrics["arm"] == "interval=9"]
    result = study.analysis.by_name("interval=9")
    assert study.analysis.core_time
    assert result.cost.seconds.median == pytest.approx(
        own[own["iteration"] >= 2]["seconds_cpu"].median()
    )
    total = own.groupby("seed")["seconds_cpu"].sum()
    assert result.cost.seconds_per_run.mean == pytest.approx(total.mean())
    # Each phase has its part of them, so that they add up.
    late = own[own["iteration"] >= 2]
    part = (late["seconds_update"] / late["seconds_total"] * late["seconds_cpu"]).median()
    assert result.cost.phases["update"] == pytest.approx(part)
    assert np.sum(list(result.cost.phases.values())) == pytest.approx(
        result.cost.seconds.median, rel=0.02
    )


@pytest.mark.parametrize("case", ["one run without it", "two threads", "a GPU", "no machine"])
def test_seconds_are_by_the_clock_otherwise(case: str, tmp_path: Path) -> None:
    sweep = make_sweep(intervals=(9, 15), seeds=3, iterations=12)
    write_runs(sweep, tmp_path / "runs")
    change_costs(sweep, tmp_path / "runs")
    folder = tmp_path / "runs" / "tau" / sweep.runs[0].folder_name
    if case == "one run without it":
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        del lines[5]["seconds_cpu"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        seal(folder)
    elif case == "no machine":
        for run in sweep.runs:
            (tmp_path / "runs" / "tau" / run.folder_name / "env.json").unlink()
    else:
        env = json.loads((folder / "env.json").read_text())
        env |= {"threads": 2} if case == "two threads" else {"device": "NVIDIA H100"}
        (folder / "env.json").write_text(json.dumps(env))
    keep(sweep, tmp_path / "runs", tmp_path / "reports")
    study = read_study(sweep, tmp_path / "reports")
    metrics = pd.read_parquet(tmp_path / "reports" / "tau" / "metrics.parquet")
    own = metrics[(metrics["arm"] == "interval=9") & (metrics["iteration"] >= 2)]
    assert not study.analysis.core_time
    assert study.analysis.by_name("interval=9").cost.seconds.median == pytest.approx(
        own["seconds_total"].median()
    )
    assert study.runs["seconds_core"].isna().all()


def test_all_reports_what_it_can_and_ends_with_what_it_could_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_pictures: None,
) -> None:
    sweeps = {
        name: make_sweep(
            name=name, seeds=3, iterations=iterations, file=Path(f"sweeps/{name}.yaml")
        )
        for name, iterations in (("broken", 30), ("good", 24))
    }
    old = make_sweep(name="broken", seeds=3, iterations=24)
    for sweep in (old, sweeps["good"]):
        write_runs(sweep, tmp_path / "old-runs")
        keep(sweep, tmp_path / "old-runs", tmp_path / "reports")
    written: list[str] = []

    def write(sweep: Sweep, runs: Path, folder: Path) -> report.Written:
        gather(sweep, runs, folder)
        written.append(sweep.name)
        return report.Written(folder / "index.html", committed=True)

    files = [Path(name) for name in sweeps]
    monkeypatch.setattr(report, "_sweep_files", lambda: files)
    monkeypatch.setattr(report, "load_sweep", lambda path, *_: sweeps[path.name])
    monkeypatch.setattr(report, "write", write)
    # Neither does a search that cannot be read, nor what confirms one, end the others.
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches" / "odd.yaml").write_text("nonsense: 1\n")
    monkeypatch.setattr(report, "SEARCHES", tmp_path / "searches")
    (tmp_path / "reports" / "found").mkdir()
    (tmp_path / "reports" / "found" / "confirm.yaml").touch()
    sweeps["confirm.yaml"] = sweeps["good"]
    with pytest.raises(ConfigError, match="another configuration"):
        report.main(every=True, runs=tmp_path / "runs", reports=tmp_path / "reports")
    assert written == ["good", "good"]
    text = (tmp_path / "reports" / "index.html").read_text()
    assert 'href="good/index.html"' in text
    assert "broken: no results yet of the file as it is now" in text
    out, errors = capsys.readouterr()
    assert str(tmp_path / "reports" / "index.html") in out
    assert re.search(r"^error: .*odd\.yaml", errors, re.MULTILINE)


def test_arms_of_the_same_schedule_are_named(studies: list[Study]) -> None:
    study = studies[2]
    analysis = replace(study.analysis, same_schedule=(("interval=9", "interval=12"),))
    found = put_together([replace(study, analysis=analysis)], [])
    (said,) = overall_words.same_schedules(found)
    assert said.startswith("tau: τ = 9 and τ = 12 are the same schedule")


def test_two_settings_that_several_studies_judge_differently_are_named(
    studies: list[Study],
) -> None:
    # The runs of one interval have the same hash in methods, tau and stride.
    methods, _, tau, stride = studies
    said = overall_words.same_pairs(put_together(studies, []))
    nine = next(text for text in said if text.startswith("τ = 9 vs τ = 15: "))
    for word, study in (("worse", tau), ("worse", methods), ("equal", stride)):
        found = study.analysis.by_name("interval=9").comparison
        assert found is not None
        size = interval(found.simultaneous, signed=True)
        assert f"{word} in {study.sweep.name} ({size}, {len(found.seeds)} seeds)" in nine
    assert overall_words.same_pairs(put_together([stride], [])) == []
    assert any(nine in text for text in overall_words.summary(put_together(studies, [])))
    # Fewer seeds stand behind more.
    short = replace(stride.analysis.by_name("interval=9").comparison, seeds=(0, 1, 2))  # type: ignore[type-var]
    arms = tuple(
        replace(r, comparison=short) if r.arm.name == "interval=9" else r
        for r in stride.analysis.arms
    )
    fewer = replace(stride, analysis=replace(stride.analysis, arms=arms))
    (text, *_) = overall_words.same_pairs(put_together([fewer, tau], []))
    assert text.index("worse in tau") < text.index("equal in stride")


def test_every_row_has_every_column(overall: Overall) -> None:
    tables: list[Table | None] = [
        overall_tables.questions_table(overall),
        overall_tables.front_table(overall),
        overall_tables.paper_noise_table(),
        overall_tables.costs_table(overall),
        glance(overall),
    ]
    for table in tables:
        assert table is not None
        assert set(map(len, table.rows)) == {len(table.columns)}
    for a, b in itertools.pairwise(overall.questions):
        assert a.study.sweep.name != b.study.sweep.name


def test_an_effect_that_is_told_apart_goes_before_a_larger_one_that_is_not(
    studies: list[Study],
) -> None:
    study = studies[2]
    noisy = study.analysis.by_name("interval=12")
    assert noisy.comparison is not None
    wide = replace(noisy.comparison.simultaneous, mean=5.0, low=-1.0, high=11.0)
    comparison = replace(noisy.comparison, simultaneous=wide, verdict="undecided")
    arms = tuple(
        replace(r, comparison=comparison) if r.arm.name == "interval=12" else r
        for r in study.analysis.arms
    )
    effect = ask(replace(study, analysis=replace(study.analysis, arms=arms))).effect
    assert effect is not None
    assert effect.arm == "interval=9"


def with_copies(sweep: Sweep, reports: Path, shared: dict[tuple[str, int], int]) -> pd.DataFrame:
    """Marks the first iterations of kept runs as copied from another run; returns the runs."""
    folder = reports / sweep.report_name
    runs = pd.read_parquet(folder / "runs.parquet")
    metrics = pd.read_parquet(folder / "metrics.parquet")
    keys = list(zip(runs["arm"], runs["seed"], strict=True))
    runs["shared"] = [shared.get(key, 0) for key in keys]
    runs["shared_seconds"] = [
        metrics.query("arm == @arm and seed == @seed and iteration < @m")["seconds_total"].sum()
        for (arm, seed), m in zip(keys, runs["shared"], strict=True)
    ]
    runs.to_parquet(folder / "runs.parquet", index=False)
    return runs


def test_what_was_copied_counts_where_it_was_computed(tmp_path: Path) -> None:
    sweep = make_sweep(intervals=(9, 15), seeds=3, iterations=24, paper=None)
    write_runs(sweep, tmp_path / "runs")
    change_costs(sweep, tmp_path / "runs")
    reports = tmp_path / "reports"
    keep(sweep, tmp_path / "runs", reports)
    shared = {("interval=9", 0): 12, ("interval=9", 1): 24}
    kept = with_copies(sweep, reports, shared).set_index(["arm", "seed"])
    study = read_study(sweep, reports)
    lines, evals = (pd.read_parquet(reports / "tau" / f"{n}.parquet") for n in ("metrics", "evals"))
    rows: list[Any] = list(study.runs.itertuples())
    for row in rows:
        m = shared.get((row.arm, row.seed), 0)
        own = lines.query("arm == @row.arm and seed == @row.seed and iteration >= @m")
        judged = evals.query("arm == @row.arm and seed == @row.seed")
        judged = judged[judged["iteration"] > m] if m else judged
        copied = lines.query("arm == @row.arm and seed == @row.seed and iteration < @m")
        whole = kept.loc[(row.arm, row.seed), "seconds_total"]
        assert row.seconds == pytest.approx(whole - copied["seconds_total"].sum())
        assert row.seconds_core == pytest.approx(own["seconds_cpu"].sum(), abs=1e-6)
        assert row.seconds_evaluation == pytest.approx(judged["seconds_total"].sum())
        total = kept.loc[(row.arm, row.seed), "evaluations_computed"]
        assert row.evaluations == total - copied["evaluations_computed"].sum()
        assert row.copied == (m == 24)
    table = overall_tables.costs_table(put_together([study], []))
    assert table.rows[0][1] == "6 of 6 (1 copied)"
    assert table.rows[0][2:] == table.rows[1][2:]


def test_of_equal_runs_the_one_that_computed_counts(tmp_path: Path) -> None:
    first = make_sweep(intervals=(9, 15), seeds=3, iterations=24, paper=None)
    second = replace(first, name="second")
    reports = tmp_path / "reports"
    for sweep in (first, second):
        write_runs(sweep, tmp_path / "runs")
        keep(sweep, tmp_path / "runs", reports)
    with_copies(second, reports, dict.fromkeys([(a.name, s) for a in second.arms for s in range(3)],
                                               24))  # fmt: skip
    studies = [read_study(sweep, reports) for sweep in (second, first)]
    copy, original, every = overall_tables.costs_table(put_together(studies, [])).rows
    assert copy[1] == "6 of 6 (6 copied)"
    assert copy[2] == "0.00"
    assert every[1] == "6"
    assert every[2:] == original[2:]


def view(name: str, *sentences: str, brief: str = "") -> Any:
    def make(*_: Any) -> views.View:
        def draw() -> Any:
            raise AssertionError("the overall report needs no picture of a view")

        return views.View(name, sentences, (), (draw,), brief)

    return make


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, reports: Path, sweeps: list[Sweep]) -> Study:
    """tau, with a question that its arms do not answer."""
    module = type(sys)("made_up_views")
    told = ("The two drift apart by 0.2, times 1.1.", "From iteration 40 on.")
    module.drift = view("Drift", *told, brief="The two drift apart.")  # type: ignore[attr-defined]
    module.turn = view("Turn", "It turns at 60.", "More of that.")  # type: ignore[attr-defined]
    module.stability = lambda *_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up_views", module)
    for name in ("drift", "turn", "stability"):
        monkeypatch.setitem(views.VIEWS, name, f"made_up_views:{name}")
    sweep = replace(sweeps[2], views=("turn", "drift", "stability"), answered_by="drift")
    return read_study(sweep, reports)


def test_a_study_that_a_view_answers_shows_the_view_and_no_arm(
    answered: Study, studies: list[Study]
) -> None:
    question = ask(answered)
    assert (question.kind, question.effect, question.needed) == ("told", None, None)
    overall = put_together([answered, studies[3]], [])
    assert "Asked about something else than the reward: tau." in overall_words.summary(overall)
    row = row_of(overall_tables.questions_table(overall), "tau")
    assert row["answer"] == "The two drift apart. It turns at 60. More of that."
    assert row["largest effect"] == row["smallest detectable difference"] == "–"
    assert "1 ask about something else than the reward" in overall_words.headline(overall)
    # The same study without the key is answered by its arms.
    assert ask(studies[2]).kind == "differs"


def test_a_view_that_has_no_data_leaves_the_question_open(answered: Study, reports: Path) -> None:
    study = read_study(replace(answered.sweep, answered_by="stability"), reports)
    question = ask(study)
    assert (question.kind, question.effect) == ("open", None)
    assert question.answer.startswith("Cannot conclude: the runs do not have yet")


def test_probes_of_other_options_are_those_of_another_configuration(
    answered: Study, reports: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "reports"
    shutil.copytree(reports / "tau", kept / "tau")
    made = json.loads((kept / "tau" / "made.json").read_text())
    made["probes"] = {"hybrid": {"p_mix": [0.5]}}
    (kept / "tau" / "made.json").write_text(json.dumps(made))
    none: dict[str, list[str]] = {"arm": [], "seed": [], "probe": []}
    pd.DataFrame(none).to_parquet(kept / "tau" / "probes.parquet")
    sweep = replace(answered.sweep, probes=made["probes"])
    assert read_study(sweep, kept).is_answered
    with pytest.raises(ConfigError, match="measured with other options"):
        read_study(replace(sweep, probes={"hybrid": {"p_mix": [0.8]}}), kept)


def test_studies_with_the_same_reference_runs_are_named(
    overall: Overall, studies: list[Study]
) -> None:
    # All four have τ = 15 of the same configuration and seeds for a reference.
    (said,) = overall_words.same_references(overall)
    assert said.startswith("methods, overhead, tau and stride compare with the same runs")
    assert said in overall_words.notes(overall)
    other = replace(
        studies[3],
        sweep=replace(studies[3].sweep, reference="interval=18"),
    )
    (said,) = overall_words.same_references(put_together([*studies[:3], other], []))
    assert said.startswith("methods, overhead and tau compare")
    assert overall_words.same_references(put_together([studies[0], other], [])) == []
    assert "one would be expected" not in " ".join(overall_words.notes(overall))


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ({"a": (0.02,), "b": (-0.029,)}, "within"),
        ({"a": (0.02,), "b": (-0.05,)}, "of its size"),
        ({"a": (0.03,)}, "of its size"),
        ({"a": (0.077,)}, "of its size"),
        ({"a": (-0.078,)}, "beyond"),
        ({"a": (0.12, 0.01)}, "of its size"),
    ],
)
def test_published_differences_are_beyond_the_noise_only_above_all_of_it(
    differences: dict[str, tuple[float, ...]], word: str
) -> None:
    assert Printed("ir", None, "base", differences).against_noise == word


def test_a_value_that_no_table_here_has_is_marked(overall: Overall) -> None:
    row = row_of(overall_tables.paper_noise_table(), "w = 6")
    assert "1.624 (source: another table of the paper)" in row["printed"]
