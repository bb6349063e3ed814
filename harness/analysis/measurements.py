"""Where a report's numbers come from: the run folders, or the copies committed with a report."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis import kept
from harness.analysis.columns import ARM, SEED
from harness.analysis.kept import Measurements
from harness.analysis.results import collect
from harness.analysis.samples import read_samples
from harness.probing.tasks import read_probes
from harness.text import command_for
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    from harness.study.spec import Sweep


def gather(sweep: "Sweep", runs_dir: Path, report: Path) -> Measurements:
    """The finished runs of a sweep, or what an earlier report kept where there are none.

    ConfigError where there is neither, or where the report kept another configuration's numbers.
    """
    results = collect(sweep, runs_dir)
    if len(results.finished):
        finished = set(zip(results.finished[ARM], results.finished[SEED], strict=True))
        samples = read_samples(sweep, finished, runs_dir, results.left_out)
        probes = read_probes(sweep, runs_dir, results.left_out)
        return Measurements(results, samples, False, probes)
    if results.left_out:
        raise RunError(
            f"{sweep.file}: nothing to report: every finished run is damaged: "
            + "; ".join(results.left_out)
        )
    if kept.has_frames(report):
        results, probes = kept.read_kept(sweep, report)
        return Measurements(results, kept.read_samples(sweep, report), True, probes)
    raise ConfigError(
        f"{sweep.file}: nothing to report: no finished run under {runs_dir / sweep.name} and no "
        f"measurements in {report}; run "
        f"`{command_for('harness.sweep', sweep, runs=runs_dir, reports=report.parent)}` first"
    )
