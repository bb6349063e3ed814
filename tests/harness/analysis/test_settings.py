"""Settings as typed columns: of frames, and of the Parquet files that a report keeps."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.analysis.kept import FRAMES, Measurements, read_kept, to_files
from harness.analysis.results import Results, collect
from harness.analysis.settings import settings_of, typed, varied, with_settings
from harness.study.spec import Sweep
from tests.harness.frames.studies import made
from tests.harness.synthetic import make_sweep, write_runs
from tests.mixgrpo.toy import ROOT


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([1, 2], "int64", [1, 2]),
        ([1, None], "Int64", [1, pd.NA]),
        ([1, 2.5], "float64", [1.0, 2.5]),
        ([None, 2.5], "float64", [float("nan"), 2.5]),
        ([None, None], "float64", [float("nan")] * 2),
        ([True, False], "bool", [True, False]),
        ([True, None], "boolean", [True, pd.NA]),
        (["a", None], "str", ["a", None]),
        ([("a", "b"), ("c",)], "str", ["a + b", "c"]),
        ([3.0, "dynamic"], "str", ["3", "dynamic"]),
        ([True, 3], "str", ["True", "3"]),
    ],
)
def test_a_column_has_one_type(values: list[Any], dtype: str, found: list[Any]) -> None:
    pd.testing.assert_series_equal(typed(values), pd.Series(found, dtype=dtype))


def test_every_setting_that_differs_is_a_column(tmp_path: Path) -> None:
    sweep = make_sweep((9, 15), seeds=3, iterations=12)
    write_runs(sweep, tmp_path)
    settings = settings_of(sweep)
    assert varied(settings) == ("window.interval",)
    frame = collect(sweep, tmp_path).runs
    wide = with_settings(frame, settings, varied(settings))
    assert list(wide["window.interval"]) == [9] * 3 + [15] * 3
    assert list(wide.columns) == ["arm", "window.interval", *frame.columns[1:]]
    assert "window.interval" not in frame


@pytest.fixture
def measured(tmp_path: Path) -> tuple[Sweep, Results]:
    arms = {
        "plain": {},
        "flash": {"sampler.tail_ratio": 0.4, "window.stop": 20, "rewards.held_out": ["palette"]},
    }
    sweep = made(tmp_path, "flash", arms=arms)
    return sweep, collect(sweep, tmp_path / "runs")


def test_a_reports_parquet_files_have_them(measured: tuple[Sweep, Results], tmp_path: Path) -> None:
    sweep, results = measured
    files = to_files(sweep, Measurements(results, None, False), "../flash.yaml")
    for of_frame in FRAMES.values():
        frame = pd.read_parquet(io.BytesIO(files[of_frame]))
        of_arms = frame.groupby("arm", sort=False)
        assert dict(of_arms["sampler.tail_ratio"].first()) == {"plain": 1.0, "flash": 0.4}
        assert dict(of_arms["rewards.held_out"].first())["flash"] == "palette"
        assert frame["window.stop"].dtype == "Int64"
        assert set(frame[frame["arm"] == "flash"]["window.stop"]) == {20}
        assert frame[frame["arm"] == "plain"]["window.stop"].isna().all()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    kept, _ = read_kept(sweep, tmp_path)
    for kind in FRAMES:
        before = getattr(results, kind)
        pd.testing.assert_frame_equal(
            getattr(kept, kind), before.assign(arm=before["arm"].astype("str"))
        )


def test_the_committed_ones_do() -> None:
    for name, column, values in (
        ("tau", "window.interval", {3, 4, 5, 6}),
        ("window", "window.size", {1, 2, 4, 6}),
    ):
        for file in FRAMES.values():
            frame = pd.read_parquet(ROOT / "reports" / name / file)
            assert set(frame[column]) == values
            said = frame["arm"].str.partition("=")[2].astype(int)
            assert (said == frame[column]).all()
