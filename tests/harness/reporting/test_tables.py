"""The tables: right numbers, right texts, valid formats."""

import csv
import io
import math
import re

import pytest

from harness import text as numbers
from harness.analysis.analyse import analyse
from harness.analysis.results import collect
from harness.reporting import csvfile, findings, latex, tables
from harness.reporting.content import content, to_latex, to_markdown
from harness.stats import mean_interval, paired_interval
from tests.harness.synthetic import make_sweep, write_runs


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A sweep in which τ = 9 is truly worse than the reference, and its measurements."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = make_sweep()
    write_runs(sweep, folder, effects={"interval=9": -0.08}, sd=0.01)
    results = collect(sweep, folder)
    return sweep, results, analyse(sweep, results)


def cells(markdown, title):
    part = markdown.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if "---" not in line]


def test_csv_holds_every_number(found):
    sweep, results, analysis = found
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(csvfile.to_csv(analysis)))}
    assert list(rows) == [arm.name for arm in sweep.arms]
    runs = results.runs[results.runs["arm"] == "interval=12"].set_index("seed")
    row = rows["interval=12"]
    after = mean_interval(list(runs["after_composition"]))
    assert float(row["composition_after_mean"]) == pytest.approx(after.mean)
    assert float(row["composition_after_low"]) == pytest.approx(after.low)
    gain = paired_interval(dict(runs["after_palette"]), dict(runs["before_palette"]))
    assert float(row["palette_change_high"]) == pytest.approx(gain.high)
    assert float(row["published_ir"]) == 1.610
    assert row["published_row"] == "20"
    seconds = results.metrics[
        (results.metrics["arm"] == "interval=12") & (results.metrics["iteration"] >= 2)
    ]["seconds_total"]
    assert float(row["seconds_per_iteration_median"]) == pytest.approx(seconds.median())
    assert float(row["nfe_old_min"]) == float(row["nfe_old_max"]) == 25
    evaluations = runs["evaluations_computed"].mean() / 96
    assert float(row["evaluations_per_iteration"]) == pytest.approx(evaluations)
    assert rows["interval=15"]["verdict"] == ""
    assert rows["interval=9"]["verdict"] == "worse"
    assert rows["interval=18"]["verdict"] == "equal"
    margin = 0.2 * analysis.reference.rewards["composition"].change.mean
    assert float(rows["interval=18"]["margin"]) == pytest.approx(margin)


def test_markdown_agrees_with_the_analysis(found):
    _, _, analysis = found
    text = to_markdown(content(analysis))
    head, *rows = cells(text, "Compared with τ = 15: composition on held-out prompts")
    assert head[0] == "arm"
    assert [row[0] for row in rows] == ["τ = 9", "τ = 12", "τ = 18"]
    assert rows[0][-1] == "worse"
    low, high = re.search(r"\[(.+), (.+)\]", rows[0][2]).groups()
    assert float(low.replace("−", "-")) < float(high.replace("−", "-")) < 0
    published = cells(text, "Published beside measured: Shift interval (τ)")
    assert published[3][2:] == ["25", "0.367", "0.237", "1.629", "3.418"]
    assert "published, FLUX.1-dev, HPDv2, another task; one run" in text
    for table in tables.tables(analysis):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_same_measurements_give_the_same_bytes(found):
    sweep, results, analysis = found
    again = analyse(sweep, results)
    assert csvfile.to_csv(again) == csvfile.to_csv(analysis)
    assert content(again) == content(analysis)


def test_a_long_text_without_spaces_leaves_the_other_columns_a_width(found):
    table = tables.Table("T", ("what", "result", "seeds"), (("m" * 500, "0.5", "8"),))
    parts = [float(part) for part in re.findall(r"dimexpr(0\.\d+)", "".join(latex._broken(table)))]
    assert sum(parts) == pytest.approx(1, abs=1e-3)
    assert min(parts) * 345 > 6  # of a line of 345 pt, with 6 pt between columns


def test_latex_is_escaped_and_balanced(found):
    _, _, analysis = found
    text = to_latex(content(analysis))
    assert text.isascii()
    assert r"$\tau$ = 9 & 5 &" in text  # narrow: shrunk to the line
    assert r"\raggedright $\tau$ = 9 &" in text  # wide: broken into lines
    assert r"NFE\_old" in text
    assert text.count(r"\toprule") == text.count(r"\begin{table}") == text.count(r"\end{table}")
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    for table, part in zip(tables.tables(analysis), text.split(r"\midrule")[1:], strict=True):
        row = re.split(r"\\\\|\\tabularnewline", part)[0]
        assert len(re.findall(r"(?<!\\)&", row)) == len(table.columns) - 1


def test_one_line_names_few_arms_and_no_sizes(found, tmp_path):
    _, _, analysis = found
    assert findings.one_line(analysis) == (
        "τ = 9 is worse than τ = 15; τ = 12 and τ = 18 differ from it by less than 0.021."
    )
    many = make_sweep(tuple(range(3, 12)), seeds=3, iterations=12, reference=11)
    write_runs(many, tmp_path, effects={"interval=3": 0.3}, sd=0.01)
    line = findings.one_line(analyse(many, collect(many, tmp_path)))
    assert line.startswith("τ = 3 is better than τ = 11; ")
    others = r"τ = \d+, τ = \d+, τ = \d+ and \d more"
    assert re.search(rf"{others} (are undecided|differ from it)", line)
    few = make_sweep(seeds=2, iterations=12)
    write_runs(few, tmp_path / "few")
    found_few = analyse(few, collect(few, tmp_path / "few"))
    assert findings.one_line(found_few) == findings.answer(found_few)


@pytest.mark.parametrize("gain", [0.0, 0.11])
def test_arms_with_the_same_scores_are_not_tested(gain, tmp_path):
    sweep = make_sweep(seeds=3)
    write_runs(sweep, tmp_path, effects={arm.name: gain - 0.11 for arm in sweep.arms}, sd=0.0)
    analysis = analyse(sweep, collect(sweep, tmp_path))
    text = to_markdown(content(analysis))
    for row in cells(text, "Compared with τ = 15: composition on held-out prompts")[1:]:
        assert row[1:] == [
            *("3", "0.000 (every seed)", "–", "–", "–"),
            "equal: no score differs",
        ]
    gains = {row[-1] for row in cells(text, "The reward composition")[1:]}
    signed = "+0.110" if gain else "0.000"
    assert gains == {f"{signed} (every seed)"}
    rows = list(csv.DictReader(io.StringIO(csvfile.to_csv(analysis))))
    assert {row["p_t_holm"] + row["detectable_difference"] for row in rows} == {""}


def test_number_texts():
    assert numbers.number(-0.0304) == "−0.030"
    assert numbers.number(0.01, signed=True) == "+0.010"
    assert numbers.number(-0.0001, signed=True) == "0.000"
    assert numbers.number(math.nan) == "–"
    assert numbers.p_value(0.0001) == "< 0.001"
    assert numbers.seconds(0.8491) == "0.849"
    assert numbers.seconds(151.23) == "151"
    assert numbers.interval(mean_interval([1.0, 2.0])) == "1.500 (n = 2)"
    assert numbers.interval(mean_interval([])) == "–"
    assert numbers.interval(mean_interval([0.5] * 3)) == "0.500 (every seed)"


def test_arms_without_runs_keep_their_row(tmp_path):
    sweep = make_sweep(seeds=3)
    skip = frozenset({("interval=9", s) for s in range(3)} | {("interval=12", 0)})
    write_runs(sweep, tmp_path, skip=skip)
    analysis = analyse(sweep, collect(sweep, tmp_path))
    rows = {
        row[0]: row for row in cells(to_markdown(content(analysis)), "The reward composition")[1:]
    }
    assert rows["τ = 9"][1:] == ["0", "–", "–", "–"]
    assert rows["τ = 12"][1] == "2"
    assert "(n = 2)" in rows["τ = 12"][3]
    compared = cells(to_markdown(content(analysis)), "Compared with τ = 15")[1:]
    assert compared[0][-1] == "undecided: too few seeds"
    csvfile.to_csv(analysis)
    to_latex(content(analysis))
