"""A report is written whatever its texts hold, and shows them as they are."""

import json
import shutil
import subprocess
import warnings
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from matplotlib.figure import Figure

from harness import report
from harness.reporting import figures
from harness.reporting.write import write_report
from mixgrpo.errors import RunError
from mixgrpo.text import escape
from tests.harness.synthetic import PROMPTS, make_sweep, write_runs
from tests.harness.test_report import Page
from tests.mixgrpo.text.test_escape import NASTY, TEXTS, shown_by_markdown

LABELS = [
    "[2cm] pay $x_$ now",
    '=HYPERLINK("http://h","a") | `b` <script>alert(1)</script> \x1b[31m',
    "_hidden 字 🙂 " + "long " * 100,
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_runs(nasty_sweep(), folder)
    prompts = [
        'tags "$5" and "$9" on a market stall',
        "a $x_$ " * 70,
        "字 🙂 \x1b[31m <b>",
    ]
    for file in folder.glob("*/*/samples/prompts.json"):
        file.write_text(json.dumps([*prompts, *PROMPTS[len(prompts) :]]))
    return folder


def nasty_sweep():
    sweep = make_sweep(intervals=(9, 12, 15), seeds=3)
    arms = [replace(arm, label=label) for arm, label in zip(sweep.arms, LABELS, strict=True)]
    return replace(
        sweep,
        arms=tuple(arms),
        question="# Is $a_b < <b>c</b> | [d](javascript:alert(1))?",
        notes="<img src=x onerror=alert(1)> \\input{x} `y` &copy; \u202etxt",
    )


@pytest.fixture
def small_figures(monkeypatch):
    monkeypatch.setattr("harness.reporting.figures.DPI", 40)


def test_nasty_texts_are_shown_in_every_file(runs, tmp_path, small_figures, monkeypatch):
    monkeypatch.setenv("TEXMFVAR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the font lacks some letters: no flood of warnings
        page = write_report(nasty_sweep(), runs, tmp_path)
    folder, shown = page.parent, [escape.one_line(label) for label in LABELS]
    html = Page(page.read_text())
    said = " ".join(" ".join(html.words).split())
    assert not html.tags & {"script", "b", "img onerror"}
    assert page.read_text().count("<img ") == len(list((folder / "figures").glob("*.png")))
    for text in (*shown, escape.one_line("a $x_$ " * 70), 'tags "$5" and "$9"', "<img src=x"):
        assert text in said, text
    read = pd.read_csv(folder / "table.csv")
    assert [label.removeprefix("'") for label in read["label"]] == shown
    assert read["composition_after_mean"].dtype == float
    blocks = shown_by_markdown((folder / "table.md").read_text())
    assert blocks[0] == nasty_sweep().question
    for label in shown:
        assert any(label in block for block in blocks)


def figures_of(page):
    return sorted(p.name for p in (page.parent / "figures").iterdir())


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex here")
def test_the_tables_for_print_compile(runs, tmp_path, no_figures):
    page = write_report(nasty_sweep(), runs, tmp_path)
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\n"
        f"\\input{{{page.parent / 'table.tex'}}}\n\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("harness.reporting.figures.draw", lambda *_: [])
    monkeypatch.setattr(
        "harness.reporting.figures.picture", lambda *a: figures.Picture(*a[:3], b"-", b"-")
    )


@pytest.mark.parametrize("text", [*NASTY, "a" * 3000])
def test_a_figure_draws_any_text(text, monkeypatch):
    monkeypatch.setattr("harness.reporting.figures.DPI", 20)
    check_drawn_text(text)


@given(TEXTS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_figure_draws_texts_of_all_kinds(text):
    check_drawn_text(text)


def check_drawn_text(text):
    made = []

    def make():
        made.append(Figure(figsize=(2, 2), layout="constrained"))
        axes = made[0].subplots()
        axes.plot([1, 2], [1, 2], label=text)
        axes.set_title(text)
        axes.set_xlabel(text)
        axes.set_yticks([1, 2], [text, text])
        axes.annotate(text, (1, 1))
        made[0].legend(*axes.get_legend_handles_labels())
        return made[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        picture = figures.picture("x", "x", "x", make)
    assert not picture.error, picture.error
    assert picture.png.startswith(b"\x89PNG")
    axes = made[0].axes[0]
    kept = " ".join(axes.get_title().split())
    assert kept == escape.one_line(text) or "…" in kept


def test_no_text_is_mathematics(monkeypatch):
    def make():
        figure = Figure()
        figure.text(0, 0, "$5 and $x_$")
        return figure

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: 1 / 0)
    assert not figures.picture("x", "x", "x", make).error


def test_a_failed_figure_is_named_and_all_else_is_written(
    runs, tmp_path, small_figures, monkeypatch
):
    def fails(*_):
        # Tables come first.
        assert (tmp_path / "tau" / "table.csv").exists()
        raise ValueError("no such <b>colour")

    monkeypatch.setattr("harness.reporting.plots.heldout", fails)
    with pytest.raises(RunError, match=r"index.html: is written without .* heldout \(ValueError"):
        write_report(nasty_sweep(), runs, tmp_path)
    folder = tmp_path / "tau"
    drawn = {p.stem for p in (folder / "figures").iterdir()}
    assert "heldout" not in drawn
    assert {"final", "samples", "time"} <= drawn
    text = (folder / "index.html").read_text()
    assert "could not be drawn (ValueError: no such &lt;b&gt;colour)" in text
    with pytest.raises(RunError):  # not remembered as if it were whole
        write_report(nasty_sweep(), runs, tmp_path)
    monkeypatch.undo()
    assert "could not be drawn" not in write_report(nasty_sweep(), runs, tmp_path).read_text()


def test_a_failing_sweep_does_not_end_all(tmp_path, monkeypatch, capsys):
    seen = []

    def write(sweep, *_):
        seen.append(sweep)
        if sweep.name == "a":
            raise ZeroDivisionError("a defect")
        return True

    sweeps = [make_sweep(name=name) for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "_sweep_files", lambda: [tmp_path / "a.yaml", tmp_path / "b.yaml"])
    loaded = iter(sweeps)
    monkeypatch.setattr(report, "load_sweep", lambda *_: next(loaded))
    monkeypatch.setattr(report, "_write_or_skip", write)
    with pytest.raises(RunError, match="ZeroDivisionError: a defect"):
        report.main(every=True, profile="laptop", runs=tmp_path, reports=tmp_path)
    assert [sweep.name for sweep in seen] == ["a", "b"]
    assert "Traceback" in capsys.readouterr().err
