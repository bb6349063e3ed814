"""The measurements that a report keeps beside itself, so that a fresh clone can draw it again.

Three Parquet files, a fourth where the sweep has probes, the pictures, and what they were made on
(`made.json`). The Parquet files have the settings that differ between arms as columns, for
whoever reads them alone; here the settings come from the sweep.
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.columns import (
    ARM,
    HASH,
    ITERATION,
    ITERATIONS,
    RUN,
    SEED,
    STATE,
    TOTALS,
    after,
    before,
    reward,
)
from harness.analysis.results import Results
from harness.analysis.samples import Samples
from harness.analysis.settings import columns_to_keep, is_setting, with_settings
from harness.runs.environment import Machine
from harness.runs.source import MADE
from harness.text import command_for
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.records import EVALUATIONS, METRICS, DamagedFileError, needed_numbers
from mixgrpo.settings.probes import check_rows

if TYPE_CHECKING:
    import pandas as pd

    from harness.study.spec import Sweep

FRAMES = {"runs": "runs.parquet", "metrics": "metrics.parquet", "evaluations": "evals.parquet"}
"""The file of each frame of `Results`."""
PROBES = "probes.parquet"
NUMBERS = ("seconds_", "reward_", "before_", "after_", "drift_", "grad_", "nfe_", "shared")
"""What the names of columns begin with that hold numbers where they are there."""


@dataclass(frozen=True)
class Measurements:
    results: Results
    samples: Samples | None
    committed: bool
    """Whether they are the copies kept with the report, for want of run folders."""
    probes: "pd.DataFrame | None" = None
    """What was measured on the finished runs besides their training (`harness.probe`)."""


def has_frames(report: Path) -> bool:
    return all((report / file).exists() for file in FRAMES.values())


def to_files(sweep: "Sweep", measurements: Measurements, file: str) -> dict[str, bytes]:
    """The files, by path inside the report's folder, that are read back here. `file`: the sweep's,
    as seen from there."""
    results, samples, probes = measurements.results, measurements.samples, measurements.probes
    made: dict[str, Any] = {
        "file": file,
        "profile": sweep.profile,
        "machines": [asdict(machine) for machine in results.machines],
        "samples": None,
    }
    frames = {of_frame: getattr(results, name) for name, of_frame in FRAMES.items()}
    if probes is not None:
        frames[PROBES] = probes
        made["probes"] = sweep.probes
    files = {}
    settings, keys = columns_to_keep(sweep)
    for name, frame in frames.items():
        stream = io.BytesIO()
        whole = with_settings(frame.assign(arm=frame[ARM].astype("str")), settings, keys)
        whole.to_parquet(stream, index=False)
        files[name] = stream.getvalue()
    if samples is not None:
        made["samples"] = {key: getattr(samples, key) for key in ("arm", "seed", "iterations")}
        prompts = json.dumps(samples.prompts, indent=1, ensure_ascii=False) + "\n"
        files["samples/prompts.json"] = prompts.encode()
        for name, pictures in (("before", samples.before), ("after", samples.after)):
            for k, picture in enumerate(pictures):
                files[f"samples/{name}/{k}.png"] = picture
    files[MADE] = (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def read_kept(
    sweep: "Sweep", report: Path, wanted: Mapping[str, Callable[[str], bool]] | None = None
) -> "tuple[Results, pd.DataFrame | None]":
    """The measurements kept with a report, and what its probes measured if the sweep has any.

    `wanted`: by frame, which of its columns are read; all of one that is not named. Runs that the
    file got since are waiting. RunError for damaged files, ConfigError where they are another
    configuration's or were probed with other options.
    """
    import pandas as pd

    with _readable(sweep, report):
        made = json.loads((report / MADE).read_text("utf-8"))
        frames, names = {}, {}
        for name, of_frame in FRAMES.items():
            file = report / of_frame
            names[name] = _names(file)
            frames[name] = _read_frame(file, (wanted or {}).get(name))
        runs = frames["runs"]
        hashes = {(run.arm, run.seed): run.hash for run in sweep.runs}
        fits = [
            hashes.get((arm, seed)) == identity
            for arm, seed, identity in zip(runs[ARM], runs[SEED], runs[HASH], strict=True)
        ]
        machines = [Machine.read(machine) for machine in made["machines"]]
        profile = str(made["profile"])
        options = made.get("probes")
        probes = _read_frame(report / PROBES) if options and sweep.probes else None
        if all(fits):
            _check(sweep, report, frames, names)
            if probes is not None and options == sweep.probes:
                _check_probes(sweep, report / PROBES, probes)
    if not all(fits):
        hint = f"; they were made with --profile {profile}" if profile != sweep.profile else ""
        raise ConfigError(
            f"{sweep.file}: no finished runs, and {report} keeps measurements of another "
            f"configuration{hint}"
        )
    if probes is not None and options != sweep.probes:
        raise ConfigError(
            f"{sweep.file}: probes: no finished runs, and {report} keeps what was measured with "
            f"other options ({json.dumps(options)}); give those, or run the sweep"
        )
    kept = set(zip(runs[ARM], runs[SEED], strict=True))
    new = [
        {ARM: run.arm, SEED: run.seed, HASH: run.hash, STATE: "waiting"}
        for run in sweep.runs
        if (run.arm, run.seed) not in kept
    ]
    if new:
        runs = pd.concat([runs, pd.DataFrame(new)], ignore_index=True)
    return Results(runs, frames["metrics"], frames["evaluations"], machines), probes


def _names(file: Path) -> list[str]:
    """The columns of a Parquet file but settings."""
    import pyarrow.parquet as parquet

    return [name for name in parquet.read_schema(file).names if not is_setting(name)]


def _read_frame(file: Path, wants: Callable[[str], bool] | None = None) -> "pd.DataFrame":
    """The columns of a Parquet file that are wanted, and no settings."""
    import pandas as pd

    return pd.read_parquet(file, columns=[n for n in _names(file) if wants is None or wants(n)])


def _check(
    sweep: "Sweep",
    report: Path,
    frames: "Mapping[str, pd.DataFrame]",
    names: Mapping[str, Sequence[str]],
) -> None:
    """DamagedFileError where these are not the frames that were kept, whose columns have these
    `names`: what every run has is missing, there twice, or no number."""
    runs = frames["runs"]
    ended = runs[runs[STATE] == "finished"]
    configs = {(run.arm, run.seed): run.config for run in sweep.runs}
    finished = {key: configs[key] for key in zip(ended[ARM], ended[SEED], strict=True)}
    rewards = {key: {*c.rewards.train, *c.rewards.held_out} for key, c in finished.items()}
    needed = {
        "runs": [ITERATIONS, *TOTALS],
        "metrics": needed_numbers(METRICS),
        "evaluations": needed_numbers(EVALUATIONS),
    }
    of_reward: dict[str, tuple[Callable[[str], str], ...]] = {
        "runs": (before, after),
        "metrics": (),
        "evaluations": (reward,),
    }
    for name, of_frame in FRAMES.items():
        file, frame = report / of_frame, ended if name == "runs" else frames[name]
        whose = list(zip(frame[ARM], frame[SEED], strict=True))
        if set(whose) != set(finished):
            raise DamagedFileError(file, "does not have the runs that are finished")
        columns: dict[str, Any] = dict.fromkeys(needed[name], slice(None))
        for one in set().union(*rewards.values()):
            for column_of in of_reward[name]:
                columns[column_of(one)] = [one in rewards[key] for key in whose]
        for column, rows in columns.items():
            if column not in names[name]:
                raise DamagedFileError(file, f"lacks the column {column}")
            if column in frame:
                _check_numbers(file, frame[column][rows], whole=True)
        for column in frame.columns:
            if column.startswith(NUMBERS):
                _check_numbers(file, frame[column], whole=False)
        twice = runs.duplicated(RUN) if name == "runs" else frame.duplicated([*RUN, ITERATION])
        if twice.any():
            raise DamagedFileError(file, "has rows twice")
        for key, count in Counter(whose).items():
            total, every = finished[key].iterations, finished[key].evaluation.every
            if count != {"runs": 1, "metrics": total}.get(name, -(-total // every) + 1):
                raise DamagedFileError(file, f"lacks rows of {key[0]}-seed{key[1]}")


def _check_numbers(file: Path, values: "pd.Series[Any]", whole: bool) -> None:
    """DamagedFileError where a column holds anything but numbers; `whole`: and in every row."""
    import numpy as np
    from pandas.api.types import is_numeric_dtype

    if is_numeric_dtype(values) and not (whole and not np.isfinite(values).all()):
        return
    if whole or values.notna().any():
        raise DamagedFileError(file, f"{values.name} is not a number in every row")


def _check_probes(sweep: "Sweep", file: Path, probes: "pd.DataFrame") -> None:
    """DamagedFileError where these are not the rows that the sweep's probes give."""
    configs = {(run.arm, run.seed): run.config for run in sweep.runs}
    key: Any
    for key, frame in probes.groupby([ARM, SEED, "probe"]):
        arm, seed, name = key
        rows: Any = frame.dropna(axis=1, how="all").to_dict("records")
        for row in rows:  # what only other probes have is NaN, and makes whole numbers fractions
            whole = {k: int(v) for k, v in row.items() if isinstance(v, float) and v.is_integer()}
            row.update(whole)
        try:
            check_rows(name, rows, sweep.probes[name], configs[arm, seed])
        except (ValueError, KeyError) as error:
            raise DamagedFileError(file, f"{arm}-seed{seed}: {name}: {error}") from None


def read_samples(sweep: "Sweep", report: Path) -> Samples | None:
    with _readable(sweep, report):
        made = json.loads((report / MADE).read_text("utf-8"))["samples"]
        if made is None:
            return None
        folder = report / "samples"
        prompts = tuple(map(str, json.loads((folder / "prompts.json").read_text("utf-8"))))
        before, after = (
            tuple((folder / name / f"{k}.png").read_bytes() for k in range(len(prompts)))
            for name in ("before", "after")
        )
        iterations = int(made["iterations"])
        return Samples(str(made["arm"]), int(made["seed"]), iterations, prompts, before, after)


@contextlib.contextmanager
def _readable(sweep: "Sweep", report: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a damaged file makes pyarrow, json or pandas raise
        is_ours = isinstance(error, DamagedFileError)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{report}: the measurements kept there cannot be read ({reason}); restore them, or "
            f"run `{command_for('harness.sweep', sweep, reports=report.parent)}`"
        ) from None


def kept_finished(report: Path) -> int:
    """How many finished runs the measurements kept with a report hold; 0 where there are none."""
    import pandas as pd

    try:
        kept = pd.read_parquet(report / FRAMES["runs"], columns=[STATE])
    except (OSError, ValueError, KeyError):
        return 0
    return int((kept[STATE] == "finished").sum())
