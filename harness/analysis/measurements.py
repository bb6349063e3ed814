"""Where a report's numbers come from: the run folders, or the copies committed with a report.

A report keeps its measurements beside it (three Parquet files, a fourth where the sweep has probes,
the pictures, what it ran on), so that a fresh clone can draw the same tables and figures without
running anything.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import RootModel

from harness.runs.environment import Machine
from harness.runs.source import MADE
from harness.text import command_for
from mixgrpo.errors import ConfigError, RunError
from mixgrpo.files.records import DamagedFileError, read, read_bytes

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.results import Results
    from harness.study.spec import Run, Sweep


_LARGEST_PICTURE = 8192
"""Pixels of a side; no model here draws such images."""

FRAMES = ("runs", "metrics", "evals")
PROBES = "probes.parquet"


class _Prompts(RootModel[tuple[str, ...]]):
    """samples/prompts.json."""


@dataclass(frozen=True)
class Samples:
    """Pictures of one run for the same prompts and noise, before and after training."""

    arm: str
    seed: int
    iterations: int
    prompts: tuple[str, ...]
    before: tuple[bytes, ...]
    """PNG files."""
    after: tuple[bytes, ...]


@dataclass(frozen=True)
class Measurements:
    results: "Results"
    samples: Samples | None
    committed: bool
    """Whether they are the copies kept with the report, for want of run folders."""
    probes: "pd.DataFrame | None" = None
    """What was measured on the finished runs besides their training (`harness.probe`)."""


def gather(sweep: "Sweep", runs_dir: Path, report: Path) -> Measurements:
    """The finished runs of a sweep, or what an earlier report kept where there are none.

    ConfigError where there is neither, or where the report kept another configuration's numbers.
    """
    from harness.analysis.results import collect
    from harness.probing.tasks import read_probes

    results = collect(sweep, runs_dir)
    if (results.runs["state"] == "finished").any():
        runs = results.runs[results.runs["state"] == "finished"]
        finished = set(zip(runs["arm"], runs["seed"], strict=True))
        samples = read_samples(sweep, finished, runs_dir, results.left_out)
        probes = read_probes(sweep, runs_dir)
        return Measurements(_sorted(sweep, results), samples, committed=False, probes=probes)
    if results.left_out:
        raise RunError(
            f"{sweep.file}: nothing to report: every finished run is damaged: "
            + "; ".join(results.left_out)
        )
    if all((report / f"{name}.parquet").exists() for name in FRAMES):
        return _committed(sweep, report)
    raise ConfigError(
        f"{sweep.file}: nothing to report: no finished run under {runs_dir / sweep.name} and no "
        f"measurements in {report}; run "
        f"`{command_for('harness.sweep', sweep, runs=runs_dir, reports=report.parent)}` first"
    )


def _sorted(sweep: "Sweep", results: "Results") -> "Results":
    """Rows in the order of the sweep, whatever order they were found in."""
    import numpy as np

    from harness.analysis.results import Results

    order = {arm.name: index for index, arm in enumerate(sweep.arms)}

    def arrange(frame: "pd.DataFrame", *keys: str) -> "pd.DataFrame":
        columns = [frame["arm"].map(order), *(frame[key] for key in keys)]
        place = np.lexsort([column.to_numpy(int) for column in reversed(columns)])
        if (place == np.arange(len(place))).all():  # no copy of millions of lines
            return frame
        return frame.iloc[place].reset_index(drop=True)

    return Results(
        arrange(results.runs, "seed"),
        arrange(results.metrics, "seed", "iteration"),
        arrange(results.evals, "seed", "iteration"),
        sorted(results.machines),
        results.left_out,
    )


def read_samples(
    sweep: "Sweep",
    finished: set[tuple[str, int]],
    runs_dir: Path,
    damaged: list[str] | None = None,
) -> Samples | None:
    """Pictures of the reference arm's first finished run; of another run where it has none.

    `finished`: arm and seed of the runs that are. What cannot be shown is added to `damaged`.
    """
    runs = sorted(sweep.runs, key=lambda run: (run.arm != sweep.reference, run.seed))
    for run in runs:
        if (run.arm, run.seed) in finished:
            try:
                found = _samples_of(run, runs_dir / sweep.name / run.folder_name / "samples")
            except DamagedFileError as error:
                fix = "the report shows another run's pictures; its numbers do not depend on them"
                if damaged is not None:
                    damaged.append(f"{run.name}: {error}; {fix}")
                continue
            if found is not None:
                return found
    return None


def _samples_of(run: "Run", folder: Path) -> Samples | None:
    """None where a run has no pictures, DamagedFileError where it has some of them."""
    total = run.config.iterations
    listing = folder / "prompts.json"
    listed = read(_Prompts, listing)
    if listed is None or not listed.root:
        return None
    before, after = (
        tuple(_picture(folder / f"{m:06d}" / f"{k}.png") for k in range(len(listed.root)))
        for m in (0, total)
    )
    return Samples(run.arm, run.seed, total, listed.root, before, after)


def _picture(file: Path) -> bytes:
    """The bytes of a PNG file. DamagedFileError where it is none."""
    from PIL import Image

    content = read_bytes(file)
    if content is None:
        raise DamagedFileError(file, "is missing")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > _LARGEST_PICTURE:
                raise DamagedFileError(file, f"has {image.size[0]} x {image.size[1]} pixels")
            image.load()
    except DamagedFileError:
        raise
    except Exception as error:  # whatever a damaged file makes PIL raise
        raise DamagedFileError(file, f"is no whole PNG: {error}".replace("\n", " ")) from None
    return content


def to_files(sweep: "Sweep", measurements: Measurements, file: str) -> dict[str, bytes]:
    """The files, by path inside the report's folder, that `gather` reads back. `file`: the sweep's,
    as seen from there."""
    results = measurements.results
    made: dict[str, Any] = {
        "file": file,
        "profile": sweep.profile,
        "machines": [asdict(machine) for machine in results.machines],
        "samples": None,
    }
    frames = {f"{name}.parquet": getattr(results, name) for name in FRAMES}
    if measurements.probes is not None:
        frames[PROBES] = measurements.probes
        made["probes"] = sweep.probes
    files = {}
    for name, frame in frames.items():
        stream = io.BytesIO()
        frame.assign(arm=frame["arm"].astype("str")).to_parquet(stream, index=False)
        files[name] = stream.getvalue()
    samples = measurements.samples
    if samples is not None:
        made["samples"] = {key: getattr(samples, key) for key in ("arm", "seed", "iterations")}
        prompts = json.dumps(samples.prompts, indent=1, ensure_ascii=False) + "\n"
        files["samples/prompts.json"] = prompts.encode()
        for name, pictures in (("before", samples.before), ("after", samples.after)):
            for k, picture in enumerate(pictures):
                files[f"samples/{name}/{k}.png"] = picture
    files[MADE] = (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()
    return files


def _committed(sweep: "Sweep", report: Path) -> Measurements:
    results, probes = read_kept(sweep, report)
    with _readable(sweep, report):
        made = json.loads((report / MADE).read_text("utf-8"))
        samples = _committed_samples(report / "samples", made["samples"])
    return Measurements(results, samples, committed=True, probes=probes)


def read_kept(
    sweep: "Sweep", report: Path, wanted: Mapping[str, Callable[[str], bool]] | None = None
) -> "tuple[Results, pd.DataFrame | None]":
    """The measurements kept with a report, and what its probes measured if the sweep has any.

    `wanted`: by table, which of its columns are read; all of one that is not named. Runs that the
    file got since are waiting. RunError for damaged files, ConfigError where they are another
    configuration's or were probed with other options.
    """
    import pandas as pd
    import pyarrow.parquet as parquet

    from harness.analysis.results import Results

    with _readable(sweep, report):
        made = json.loads((report / MADE).read_text("utf-8"))
        frames = {}
        for name in FRAMES:
            file = report / f"{name}.parquet"
            wants = (wanted or {}).get(name)
            columns = wants and [c for c in parquet.read_schema(file).names if wants(c)]
            frames[name] = pd.read_parquet(file, columns=columns)
        runs = frames["runs"]
        hashes = {(run.arm, run.seed): run.hash for run in sweep.runs}
        fits = [
            hashes.get((arm, seed)) == identity
            for arm, seed, identity in zip(runs["arm"], runs["seed"], runs["hash"], strict=True)
        ]
        machines = [Machine.read(machine) for machine in made["machines"]]
        profile = str(made["profile"])
        options = made.get("probes")
        probes = pd.read_parquet(report / PROBES) if options and sweep.probes else None
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
    kept = set(zip(runs["arm"], runs["seed"], strict=True))
    new = [
        {"arm": run.arm, "seed": run.seed, "hash": run.hash, "state": "waiting"}
        for run in sweep.runs
        if (run.arm, run.seed) not in kept
    ]
    if new:  # arms or seeds that the file got since
        runs = pd.concat([runs, pd.DataFrame(new)], ignore_index=True)
    return Results(runs, frames["metrics"], frames["evals"], machines), probes


@contextlib.contextmanager
def _readable(sweep: "Sweep", report: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a damaged file makes pyarrow, json or pandas raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{report}: the measurements kept there cannot be read ({reason}); restore them, or "
            f"run `{command_for('harness.sweep', sweep, reports=report.parent)}`"
        ) from None


def _committed_samples(folder: Path, made: Mapping[str, Any] | None) -> Samples | None:
    if made is None:
        return None
    prompts = tuple(map(str, json.loads((folder / "prompts.json").read_text("utf-8"))))
    before, after = (
        tuple((folder / name / f"{k}.png").read_bytes() for k in range(len(prompts)))
        for name in ("before", "after")
    )
    return Samples(
        str(made["arm"]), int(made["seed"]), int(made["iterations"]), prompts, before, after
    )


def kept_finished(report: Path) -> int:
    """How many finished runs the measurements kept with a report hold; 0 where there are none."""
    import pandas as pd

    try:
        kept = pd.read_parquet(report / "runs.parquet", columns=["state"])
    except (OSError, ValueError, KeyError):
        return 0
    return int((kept["state"] == "finished").sum())
