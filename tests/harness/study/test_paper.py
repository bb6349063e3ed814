"""The published numbers: complete, consistent, and found by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.study import paper
from harness.study.load import load_sweep, profile_names
from mixgrpo.errors import ConfigError


def test_every_table_is_a_frame_with_its_name():
    for name, published in paper.TABLES.items():
        frame = paper.table(name)
        assert len(frame) == len(published.rows)
        assert set(frame["table"]) == {name}
        assert list(frame["key"]) == list(published.rows)
        assert list(frame.columns) == ["table", "key", *published.columns]


def test_rows_by_key():
    assert paper.row("tau", "25") == {"hps": 0.367, "pick": 0.237, "ir": 1.629, "ur": 3.418}
    assert paper.row("main", "DanceGRPO")["seconds_per_iteration"] == 291.284
    assert paper.row("main", "FLUX.1-dev") == {"hps": 0.313, "pick": 0.227, "ir": 1.088, "ur": 3.37}
    assert paper.row("alignment", "MixGRPO")["nfe_theta"] == 4


def test_what_the_paper_says_of_its_numbers_holds():
    seconds = {
        key: paper.row("main", key).get("seconds_per_iteration")
        for key in paper.TABLES["main"].rows
    }
    base = seconds["DanceGRPO"]
    assert 1 - seconds["MixGRPO-Flash*"] / base == pytest.approx(0.71, abs=0.005)
    assert 1 - seconds["MixGRPO-Flash"] / base == pytest.approx(0.61, abs=0.005)
    assert 1 - seconds["MixGRPO"] / base == pytest.approx(0.48, abs=0.005)
    # The same setting, printed in several tables.
    assert paper.row("tau", "25") == paper.row("strategy", "constant") == paper.row("stride", "1")
    assert paper.row("size", "4") == paper.row("tau", "25")
    # Digit for digit: the ablations were probably scored with hybrid inference.
    assert paper.row("tau", "20") == paper.row("hybrid", "80")


def test_scores_lie_where_such_scores_lie():
    ranges = {
        "hps": (0.3, 0.38),
        "clip": (0.34, 0.42),
        "pick": (0.22, 0.24),
        "ir": (1.08, 1.65),
        "ur": (3.2, 3.45),
    }
    for name in paper.TABLES:
        frame = paper.table(name)
        for column, (low, high) in ranges.items():
            if column in frame:
                assert frame[column].between(low, high).all(), (name, column)


def test_what_was_printed_twice_is_what_the_tables_have():
    for repeated in paper.REPEATED:
        assert len({value for value, _, _ in repeated.printed}) > 1
        for value, name, key in repeated.printed:
            if key is not None:
                assert paper.row(name, key)[repeated.score] == value, repeated
    # ImageReward: w = 2, Flash and w = 6 differ by 0.030, 0.050 and 0.077.
    assert paper.noise("ir") == (0.030, 0.077)
    assert paper.noise("hps") == (0.004, 0.004)
    assert paper.noise("clip") is None


def test_differences_have_every_printed_value():
    assert paper.differences("tau", "25", "ir") == {"15": (-0.12,), "20": (-0.019,), "30": (-0.04,)}
    # w = 6 is 1.547 in its table and 1.624 in another; w = 4 is 1.629.
    assert paper.differences("size", "4", "ir")["6"] == (-0.082, -0.005)
    # Both sides: 1.588 or 1.618 minus 1.547 or 1.624.
    assert set(paper.differences("size", "6", "ir")["2"]) == {0.041, -0.036, 0.071, -0.006}
    assert paper.differences("main", "FLUX.1-dev", "clip") == {}


def test_errors_name_what_there_is():
    with pytest.raises(ConfigError, match="did you mean stride"):
        paper.table("strides")
    with pytest.raises(ConfigError, match="no row 40"):
        paper.row("tau", "40")


ROOT = Path(__file__).parents[3]
SWEEPS = [file for file in sorted((ROOT / "sweeps").glob("*.yaml")) if "paper:" in file.read_text()]


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_what_stands_beside_a_published_row_moves_as_the_published_code_does(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scripts roll back; and decay linearly from 10 iterations to 1, or a fifth of that."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples" / "prompts", "prompts")
    compared = 0
    for profile in profile_names(file):
        sweep = load_sweep(file, profile)
        firsts = {run.arm: run for run in reversed(sweep.runs)}
        for arm in sweep.paper_rows:
            config = firsts[arm].config
            if config.window.strategy in ("frozen", "random"):
                continue
            window = config.make_window()
            if window.strategy == "linear-decay":
                assert (window.interval, window.interval_min) == (config.iterations // 30, 1)
            released = replace(window, at_end="released")
            for iteration in range(config.iterations):
                assert window.start_at(iteration) == released.start_at(iteration), (profile, arm)
            compared += 1
    assert compared
