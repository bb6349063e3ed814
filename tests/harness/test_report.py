"""The report as a reader and a build meet it: files, sentences, bytes, errors."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import report
from harness.analysis.analyse import _shared_until, analyse
from harness.analysis.results import collect
from harness.analysis.seconds import at_evaluations
from harness.reporting import findings
from harness.reporting.notes import statistics_notes
from harness.reporting.page import write_parts
from harness.reporting.views import view as views
from harness.reporting.write import FullerReport, write_report
from harness.study.load import load_sweep
from mixgrpo.errors import ConfigError, RunError

from .synthetic import make_sweep, seal, write_runs

FIGURES = {"differences", "final", "learning", "heldout", "samples", "window", "time", "budget"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_runs(make_sweep(), folder)
    return folder


@pytest.fixture(scope="module")
def reports(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    write_report(make_sweep(), runs, folder)
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    """For tests of words alone: drawing takes seconds."""
    monkeypatch.setattr("harness.reporting.figures.draw", lambda *_: [])


@pytest.fixture
def small_figures(monkeypatch):
    """For tests that figures can be drawn at all."""
    monkeypatch.setattr("harness.reporting.figures.DPI", 40)


def words(page):
    """The text of a page with plain spaces."""
    return " ".join(page.read_text().split())


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def found(tmp_path, seeds=5, **options):
    sweep = make_sweep(seeds=seeds, **options.pop("sweep", {}))
    write_runs(sweep, tmp_path, **options)
    return analyse(sweep, collect(sweep, tmp_path))


class Page(HTMLParser):
    """Text, tags and addresses of a page; an error where tags do not nest."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.words = [], [], set(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _double(frame):
    return pd.concat([frame, frame])


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("evals", lambda f: f.drop(columns="reward_composition_mean"), "lacks the column reward_"),
        ("metrics", lambda f: f.drop(columns="seconds_total"), "lacks the column seconds_total"),
        ("runs", lambda f: f.drop(columns="after_composition"), "lacks the column after_comp"),
        ("runs", lambda f: f.assign(after_composition="x"), "after_composition is not a number"),
        ("runs", lambda f: f.assign(seconds_total=np.nan), "seconds_total is not a number"),
        ("metrics", lambda f: f.assign(seconds_rollout="x"), "seconds_rollout is not a number"),
        ("runs", _double, "has rows twice"),
        ("metrics", _double, "has rows twice"),
        ("metrics", lambda f: f.iloc[:-3], "lacks rows of"),
        ("evals", lambda f: f.iloc[1:], "lacks rows of"),
        ("evals", lambda f: f.iloc[:0], "does not have the runs that are finished"),
        ("metrics", lambda f: f.assign(arm="x"), "does not have the runs that are finished"),
        ("evals", lambda f: f.drop(columns="arm"), "cannot be read (KeyError"),
    ],
)
def test_damaged_measurements_of_a_report_are_one_line(
    file, spoil, said, reports, tmp_path, no_figures
):
    kept = tmp_path / "kept"
    shutil.copytree(reports, kept)
    path = kept / "tau" / f"{file}.parquet"
    spoil(pd.read_parquet(path)).to_parquet(path, index=False)
    with pytest.raises(RunError) as damaged:
        write_report(make_sweep(), tmp_path / "none", kept)
    assert said in str(damaged.value)
    assert "restore them, or run `python -m harness.sweep" in str(damaged.value)


def test_everything_is_written(reports):
    files = set(contents(reports / "tau"))
    expected = {"table.md", "table.csv", "table.tex", "index.html", "made.json"}
    expected |= {f"{name}.parquet" for name in ("runs", "metrics", "evals")}
    expected |= {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    expected |= {"samples/prompts.json"}
    expected |= {f"samples/{when}/{k}.png" for when in ("before", "after") for k in range(8)}
    assert files == expected


def test_the_page_is_one_file_and_says_what_was_found(reports):
    text = (reports / "tau" / "index.html").read_text()
    page = Page(text)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == len(FIGURES)
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    said = " ".join(" ".join(page.words).split())
    for part in [
        "τ = 9, τ = 12 and τ = 18 are undecided compared with τ = 15 (5 seeds)",
        "the smallest detectable difference (power 80 %) is",
        "Training gained in every arm",
        "That is what reward hacking looks like",
        "not comparable across window positions",
        "bit-identical until their windows first differ",
        "the sign-flip p cannot be below 0.0625, 0.1875 after adjustment",
        "published, FLUX.1-dev, HPDv2, another task; one run",
        "python -m harness.report sweeps/tau.yaml --profile laptop",
        "commit 0123456789",
        "15 stands for 25",
    ]:
        assert part in said, part
    assert "not finished" not in said


@pytest.mark.parametrize("has_data", [True, False])
def test_where_a_view_answers_its_answer_comes_first(
    has_data, runs, tmp_path, no_figures, monkeypatch
):
    module = type(sys)("made_up_views")
    told = ("They drift apart by 0.2.", "From 40 on.")
    made = views.View("Drift", told, (), (), brief="They drift apart.")
    module.drift = lambda *_: made if has_data else None
    monkeypatch.setitem(sys.modules, "made_up_views", module)
    monkeypatch.setitem(views.VIEWS, "drift", "made_up_views:drift")
    monkeypatch.setattr("harness.study.views.DEFAULT", ())
    sweep = replace(make_sweep(), views=("drift",), answered_by="drift")
    page = write_report(sweep, runs, tmp_path)
    order = ["They drift apart." if has_data else "Cannot conclude: the runs do"]
    order.append("are undecided compared with")
    order += told if has_data else ()
    for text in (words(page).replace("\u00a0", " "), words(page.parent / "table.md")):
        assert sorted(map(text.index, order)) == [text.index(part) for part in order]
    first = words(page).split('<p class="first">')[1]
    assert first.startswith(order[0])


def test_the_same_runs_give_the_same_bytes_in_any_process(runs, reports, tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from pathlib import Path; from synthetic import make_sweep;"
        "from harness.reporting.write import write_report;"
        "write_report(make_sweep(), Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(runs), str(tmp_path)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "7"})
    assert contents(tmp_path / "tau") == contents(reports / "tau")


def test_a_fresh_clone_draws_the_same_from_what_was_kept(reports, tmp_path):
    kept = tmp_path / "reports"
    shutil.copytree(reports, kept)
    for name in ("table.md", "table.csv", "table.tex", "index.html"):
        (kept / "tau" / name).unlink()
    shutil.rmtree(kept / "tau" / "figures")
    write_report(make_sweep(), tmp_path / "no-runs", kept)
    assert contents(kept / "tau") == contents(reports / "tau")


def test_kept_measurements_of_another_configuration_are_refused(reports, tmp_path, no_figures):
    other = replace(make_sweep(iterations=48), profile="full")
    with pytest.raises(
        ConfigError, match="another configuration; they were made with --profile la"
    ):
        write_report(other, tmp_path, reports)


def test_seeds_added_to_the_file_are_missing_in_what_was_kept(reports, tmp_path, no_figures):
    kept = tmp_path / "reports"
    shutil.copytree(reports, kept)
    page = words(write_report(make_sweep(seeds=6), tmp_path / "no-runs", kept))
    assert "4 of 24 runs are not finished" in page
    assert "waiting: τ = 9 seed 5, τ = 12 seed 5, τ = 15 seed 5 and τ = 18 seed 5." in page


@pytest.mark.parametrize("name", ["metrics.parquet", "made.json", "samples/after/3.png"])
def test_damaged_measurements_are_one_clear_error(reports, tmp_path, name):
    kept = tmp_path / "reports"
    shutil.copytree(reports, kept)
    if name.endswith(".png"):
        (kept / "tau" / name).unlink()
    else:
        (kept / "tau" / name).write_bytes(b"PAR1 damaged")
    with pytest.raises(RunError, match="cannot be read"):
        write_report(make_sweep(), tmp_path / "no-runs", kept)


def test_nothing_to_report(tmp_path):
    with pytest.raises(ConfigError, match="nothing to report"):
        write_report(make_sweep(), tmp_path / "runs", tmp_path / "reports")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_place_keeps_the_old_report(runs, tmp_path, monkeypatch, no_figures):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report(make_sweep(), runs, tmp_path / "file")

    target = tmp_path / "table.md"
    write_parts(tmp_path, [({target.name: b"old"}, [])])

    def full(self, other):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_parts(tmp_path, [({target.name: b"new"}, [])])
    assert target.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"file", "table.md"}


def test_a_new_report_removes_pictures_the_old_one_had(runs, tmp_path, no_figures):
    stale = tmp_path / "tau" / "figures" / "gone.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    mine = tmp_path / "tau" / "notes.txt"
    mine.write_text("kept")
    write_report(make_sweep(), runs, tmp_path)
    assert not stale.exists()
    assert mine.read_text() == "kept"


def test_part_of_the_runs(tmp_path, no_figures):
    skip = frozenset({("interval=9", 4), ("interval=12", 0), ("interval=12", 1)})
    write_runs(make_sweep(), tmp_path / "runs", skip=skip)
    page = words(write_report(make_sweep(), tmp_path / "runs", tmp_path / "reports"))
    assert "3 of 20 runs are not finished and not in this report." in page
    assert "waiting: τ = 9 seed 4, τ = 12 seed 0 and τ = 12 seed 1." in page
    assert "is compared over 3 seeds; only one side has seed 0, 1" in page


def test_text_of_others_is_escaped(runs, tmp_path, no_figures):
    sweep = make_sweep(question="Is <b>τ</b> & w | one?", notes="<script>alert(1)</script>")
    page = words(write_report(sweep, runs, tmp_path))
    assert "<script>" not in page
    assert "Is &lt;b&gt;τ&lt;/b&gt; &amp; w" in page


def test_too_few_seeds_conclude_nothing(tmp_path, small_figures):
    write_runs(make_sweep(seeds=2), tmp_path / "runs", effects={"interval=9": 0.5})
    page = words(write_report(make_sweep(seeds=2), tmp_path / "runs", tmp_path / "reports"))
    assert "Cannot conclude: the reference τ = 15 has 2 finished seeds" in page
    assert "Whether training gained cannot be concluded" in page
    assert "80 % chance of being found" not in page


def test_one_finished_run_makes_a_report(tmp_path, small_figures):
    sweep = make_sweep(seeds=1)
    skip = frozenset({("interval=12", 0), ("interval=15", 0), ("interval=18", 0)})
    write_runs(sweep, tmp_path / "runs", skip=skip)
    page = words(write_report(sweep, tmp_path / "runs", tmp_path / "reports"))
    assert "Cannot conclude: the reference τ = 15 has no finished seeds" in page
    assert "τ = 9, seed 0" in page  # pictures of the run there is


@pytest.mark.parametrize("iterations", [1, 2])
def test_runs_of_one_or_two_iterations_make_a_report(iterations, tmp_path, small_figures):
    sweep = make_sweep(seeds=3, iterations=iterations)
    write_runs(sweep, tmp_path / "runs")
    write_report(sweep, tmp_path / "runs", tmp_path / "reports")
    last = analyse(sweep, collect(sweep, tmp_path / "runs")).reference
    assert last.cost.seconds.median > 0


def test_a_lone_arm_and_many_arms(tmp_path, small_figures):
    lone = make_sweep((15,), seeds=3)
    write_runs(lone, tmp_path / "lone")
    page = words(write_report(lone, tmp_path / "lone", tmp_path / "a"))
    assert "Nothing is compared: τ = 15 is the only arm." in page
    many = make_sweep(tuple(range(8, 16)), seeds=3, iterations=24)
    write_runs(many, tmp_path / "many")
    page = write_report(many, tmp_path / "many", tmp_path / "b")
    assert "are undecided compared with" in words(page)


def same_scores(tmp_path, gain, others=None):
    effects = {f"interval={i}": gain - 0.11 for i in (9, 12, 15, 18)}
    return found(tmp_path, seeds=3, effects=effects | (others or {}), sd=0.0)


def test_nothing_learned(tmp_path, small_figures):
    still = same_scores(tmp_path, 0.0)
    assert findings.answer(still) == (
        "Nothing was learned: no arm's composition on held-out prompts moved with any seed, so "
        "that there is nothing to compare."
    )
    assert "with every seed composition after it is exactly what it was" in findings.gain(still)
    assert "moved in no arm with any seed" in findings.other_rewards(still)[1].text
    page = words(write_report(still.sweep, tmp_path, tmp_path / "reports"))
    assert "differences that are the same with every seed say nothing about chance" in page
    assert "equal: no score differs" in page
    for wrong in ("detectable difference 0.000", "1.000", "(power 80 %)", "[0.000"):
        assert wrong not in page.split("How to read the numbers")[0].replace("\u00a0", " "), wrong
    assert "p values" not in page
    assert "followed by (every seed)" in page
    table = words(tmp_path / "reports" / "tau" / "table.md")
    assert "Nothing was learned" in table


def test_the_same_scores_after_learning(tmp_path):
    same = same_scores(tmp_path / "all", 0.11)
    assert findings.answer(same) == (
        "In the reward composition on held-out prompts, τ = 9, τ = 12 and τ = 18 have exactly the "
        "scores of τ = 15 with every seed (3 seeds)."
    )
    assert findings.gain(same).startswith("Training gained in every arm")
    # One arm that differs, and by the same in every seed: that is no evidence either.
    one = same_scores(tmp_path / "one", 0.11, {"interval=9": 0.1})
    assert "τ = 9 cannot be judged" in findings.answer(one)
    assert "τ = 12 and τ = 18 have exactly the scores of" in findings.answer(one)


def watch(sweep, runs_dir, arm, seconds):
    """Give the runs of an arm what a run with health settings measures besides."""
    for run in sweep.runs:
        if run.arm != arm:
            continue
        folder = runs_dir / sweep.name / run.folder_name
        for name in ("metrics", "eval"):
            file = folder / f"{name}.jsonl"
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            for m, line in enumerate(lines):
                if name == "eval":
                    line["diversity"] = 0.2
                    continue
                line |= {"group_diversity": 0.1, "seconds_health": seconds}
                line["seconds_total"] += seconds
                line["gradient_cosine"] = None if m % 2 else 0.5
                if m % 9 == 0:
                    line |= {"drift_step_kl": 0.1, "drift_image_kl": 0.2, "evaluations_health": 8}
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        seal(folder)


@pytest.mark.parametrize("arms", [["interval=9"], ["interval=9", "interval=15"]])
def test_what_is_measured_beside_training_is_in_no_comparison(arms, tmp_path, small_figures):
    sweep = make_sweep(intervals=(9, 15), seeds=3, iterations=24)
    write_runs(sweep, tmp_path / "runs")
    before = analyse(sweep, collect(sweep, tmp_path / "runs"))
    assert {r.cost.phases["health"] for r in before.arms} == {0.0}
    for arm in arms:
        watch(sweep, tmp_path / "runs", arm, 7.0)
    results = collect(sweep, tmp_path / "runs")
    after = analyse(sweep, results)
    for now, was in zip(after.arms, before.arms, strict=True):
        watched = now.arm.name in arms
        assert now.cost.phases == was.cost.phases | {"health": 7.0 if watched else 0.0}
        assert now.cost.seconds.median == pytest.approx(was.cost.seconds.median)
        if was.cost.time_ratio is not None:
            assert now.cost.time_ratio.mean == pytest.approx(was.cost.time_ratio.mean)
    assert at_evaluations(results)["seconds"].max() < 30
    page = write_report(sweep, tmp_path / "runs", tmp_path / "reports")
    assert "is in the bar but not in the number" in words(page)
    kept = contents(page.parent)
    shutil.rmtree(tmp_path / "runs")
    write_report(sweep, tmp_path / "runs", tmp_path / "reports")
    assert contents(page.parent) == kept


def test_arms_on_presets_of_their_own(tmp_path, small_figures):
    presets = Path(__file__).parents[2] / "sweeps" / "presets"
    file = tmp_path / "sweeps" / "presets.yaml"
    shutil.copytree(presets, file.parent / "presets")
    file.write_text(
        "name: presets\nquestion: Which?\nset: {iterations: 12}\nseeds: 3\n"
        "arms:\n  flash: {base: presets/mixgrpo-flash.yaml}\n"
        "  dance: {base: presets/dance-grpo.yaml, label: Dance}\n"
    )
    sweep = load_sweep(file)
    write_runs(sweep, tmp_path / "runs")
    page = words(write_report(sweep, tmp_path / "runs", tmp_path / "reports"))
    assert "Dance trains 14 of the 24 steps of its window, drawn for every image anew." in page
    assert "mixgrpo-flash trains" not in page
    arms = "mixgrpo-flash (presets/mixgrpo-flash.yaml), Dance (presets/dance-grpo.yaml)"
    assert f"<dt>Arms</dt><dd>{arms}</dd>" in page
    assert "<dt>Model</dt><dd>scenes</dd>" in page


def test_answers(tmp_path):
    better = found(tmp_path / "1", effects={"interval=9": 0.1, "interval=18": -0.1}, sd=0.01)
    text = findings.answer(better)
    assert re.search(r"τ = 9 is better than τ = 15 by 0\.\d+ \[0\.\d+, 0\.\d+\];", text)
    assert re.search(r"τ = 18 is worse than it by 0\.\d+ \[0\.\d+, 0\.\d+\];", text)
    assert text.endswith("τ = 12 differs from it by less than 0.021 (5 seeds).")
    assert findings.gain(better).startswith("Training gained in")
    flat = found(
        tmp_path / "2", effects=dict.fromkeys([f"interval={i}" for i in (9, 12, 15, 18)], -0.11)
    )
    assert findings.gain(flat).startswith("No gain is shown: every interval")
    hacked = findings.other_rewards(better)
    assert "The reward palette (only measured) fell in every arm" in hacked[0].text


def test_random_windows_part_earliest_over_seeds():
    sweep = make_sweep(intervals=(9, 15), seeds=40, iterations=60)
    base = next(run.config for run in sweep.runs if run.arm == sweep.reference).make_window()
    runs, partings = {}, {}
    for run in sweep.runs:
        if run.arm != sweep.reference:
            window = run.config.window.model_copy(update={"strategy": "random"})
            run = replace(run, config=run.config.model_copy(update={"window": window}))
            own = run.config.make_window()
            differing = (m for m in range(60) if own.start_at(m) != base.start_at(m))
            partings[run.seed] = next(differing)
        runs.setdefault(run.seed, []).append(run)
    assert len(set(partings.values())) > 1
    late_first = sorted(runs, key=lambda seed: -partings[seed])
    sweep = replace(sweep, runs=tuple(run for seed in late_first for run in runs[seed]))
    assert _shared_until(sweep) == {"interval=9": min(partings.values())}


def test_arms_that_part_and_arms_that_do_not(tmp_path):
    analysis = found(tmp_path, seeds=3, sweep={"intervals": (9, 15, 100, 200), "iterations": 60})
    notes = " ".join(statistics_notes(analysis))
    assert "τ = 9 from iteration 9, τ = 100 from iteration 15" in notes
    assert "τ = 100 and τ = 200 are the same schedule over the whole run" in notes


# ---- the command -----------------------------------------------------------------------------


def command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "harness.report", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


SWEEP = """
name: little
question: Does it matter?
set: {iterations: 24, evaluation.every: 12}
grid: {window.interval: [9, 15]}
seeds: 3
"""


@pytest.fixture
def place(tmp_path):
    """A folder as a clone: sweeps/little.yaml, and its runs."""
    from harness.study.load import load_sweep

    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "little.yaml").write_text(SWEEP)
    (tmp_path / "sweeps" / "unrun.yaml").write_text(SWEEP.replace("little", "unrun"))
    write_runs(load_sweep(tmp_path / "sweeps" / "little.yaml"), tmp_path / "runs")
    return tmp_path


def test_the_command(place, monkeypatch, capsys, no_figures):
    monkeypatch.chdir(place)
    report.main(Path("sweeps/little.yaml"))
    assert capsys.readouterr().out == "reports/little/index.html\n"
    before = contents(place / "reports" / "little")
    assert b"python -m harness.report sweeps/little.yaml" in before["index.html"]
    shutil.rmtree(place / "runs")
    report.main(every=True)
    said = capsys.readouterr().out
    assert "sweeps/little.yaml: no run folders; using the measurements kept in" in said
    assert "sweeps/unrun.yaml: no results yet" in said
    assert contents(place / "reports" / "little") == before


def test_the_command_as_a_process(place):
    done = command("sweeps/little.yaml", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "reports/little/index.html\n"
    assert (place / "reports" / "little" / "figures" / "differences.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a sweep file or --all"),
        (["sweeps/little.yaml", "--all"], "give either a sweep file or --all"),
        (["sweeps/litle.yaml"], "no such file; did you mean"),
        (["sweeps/unrun.yaml"], "nothing to report"),
        (["sweeps/little.yaml", "--profile", "big"], "no such profile: big"),
        (["sweeps/little.yaml", "--unknown"], "No such option"),
    ],
)
def test_what_the_user_wrote_exits_with_2(place, arguments, message):
    done = command(*arguments, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_what_failed_exits_with_1(place):
    result = next((place / "runs" / "little").glob("*/result.json"))
    result.write_text(json.dumps(json.loads(result.read_text()) | {"schema": 99}))
    done = command("sweeps/little.yaml", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "another version" in done.stderr
    assert not (place / "reports").exists()


def test_help_is_quick_and_loads_nothing_heavy():
    script = (
        "import sys, harness.report;"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
    assert command("--help").returncode == 0


def test_a_part_does_not_replace_the_report_of_more(tmp_path: Path) -> None:
    sweep = make_sweep()
    write_runs(sweep, tmp_path / "all")
    page = write_report(sweep, tmp_path / "all", tmp_path / "reports")
    before = {p: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()}
    write_runs(sweep, tmp_path / "part", skip=frozenset({("interval=12", 1)}))
    with pytest.raises(FullerReport, match="is kept"):
        write_report(sweep, tmp_path / "part", tmp_path / "reports")
    assert {p: p.read_bytes() for p in page.parent.rglob("*") if p.is_file()} == before
    # A sweep that asks for less and has all of it is no part.
    smaller = make_sweep(seeds=3)
    write_report(smaller, tmp_path / "all", tmp_path / "reports")
    assert page.read_bytes() != before[page]


def test_a_trial_has_a_report_of_its_own() -> None:
    file = Path(__file__).parents[2] / "sweeps" / "tau.yaml"
    trial = load_sweep(file, overrides=["rollout.prompts=2"])
    names = [
        load_sweep(file).report_name,
        load_sweep(file, "laptop").report_name,
        load_sweep(file, "full").report_name,
        trial.report_name,
        load_sweep(file, overrides=["rollout.prompts=3"]).report_name,
    ]
    assert names[:3] == ["tau", "tau", "tau-full"]
    assert len(set(names)) == 4
    assert all(name.startswith("tau-set-") for name in names[3:])
