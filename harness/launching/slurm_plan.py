"""What a sweep would submit to Slurm, in text: arrays, GPU hours, sbatch text. Submits nothing."""

from collections.abc import Mapping
from pathlib import Path

from harness.launching.cluster import Array, Cluster
from harness.launching.dispatch import Start
from harness.launching.resources import Slurm
from harness.launching.snapshot import locate
from harness.runs.state import LIVE, RunState, sweep_folder
from harness.slurm import commands as slurm
from harness.study.spec import Sweep
from mixgrpo.errors import ConfigError
from mixgrpo.text.words import duration


def describe_arrays(
    sweep: Sweep,
    runs_dir: Path,
    states: list[RunState],
    resources: Mapping[str, Slurm],
    snapshot: bool = False,
) -> str:
    """The arrays that would be submitted for the runs that are neither finished nor under way, also
    on a machine without Slurm. ConfigError for a folder whose path Slurm cannot use.
    """
    folder = sweep_folder(sweep, runs_dir)
    code = locate(folder) if snapshot else None
    cluster = Cluster(sweep.name, folder, resources, lambda _: None, snapshot=code)
    missing = [s for s in states if s.state not in ("finished", *LIVE)]
    arrays = cluster.arrays(Start(state.run, state.folder) for state in missing)
    by_name = {state.run.folder_name: state for state in states}
    paces = _paces(states)
    lines = [""]
    under_way = sum(state.state in LIVE for state in states)
    if under_way:
        lines.append(f"{under_way} run(s) are in the queue or running already")
    if not arrays:
        lines.append("nothing to submit")
    total, unknown = 0.0, 0
    for number, array in enumerate(arrays, 1):
        runs = [by_name[start.name] for pack in array.packs for start in pack]
        lines.append(f"array {number} of {len(arrays)}: {_array(array, runs)}")
        for state in runs:
            seconds = _seconds_left(state, paces)
            if seconds is None:
                unknown += 1
            else:
                total += seconds / 3600 * array.resources.gpus_per_run
    if arrays:
        lines.append(_hours(total, unknown, arrays))
        lines += _too_long(arrays, by_name, paces)
    try:
        slurm.check()
    except ConfigError as error:
        return "\n".join([*lines, "", f"nothing can be submitted from here: {error}"])
    # One of the arrays that differ only in their length is enough.
    different = {array.resources.model_dump_json(): array for array in reversed(arrays)}
    for number, array in enumerate(reversed(list(different.values())), 1):
        lines += ["", f"--- sbatch text {number} ---", cluster.text(array)]
    return "\n".join(lines)


def _array(array: Array, runs: list[RunState]) -> str:
    asked = array.resources
    jobs = len(array.packs)
    text = f"{jobs} job{'' if jobs == 1 else 's'}"
    if asked.pack > 1:
        text += f" with up to {asked.pack} runs each, {len(runs)} runs"
    if asked.at_once:
        text += f", {asked.at_once} at once"
    each = f"{asked.shards} GPU share(s)" if asked.shards else f"{asked.gpus} GPU(s)"
    text += f"; each {each}, {asked.cpus} cores"
    if asked.processes > 1:
        text += f" per process, {asked.nodes} node(s) x {asked.tasks_per_node} processes"
    return f"{text}, at most {duration(asked.time * 60)}"


def _paces(states: list[RunState]) -> dict[str, float]:
    """Measured seconds per iteration by arm, of finished runs or else of unfinished ones."""
    paces: dict[bool, dict[str, list[float]]] = {False: {}, True: {}}
    for state in states:
        if state.seconds_per_iteration is not None:
            by_arm = paces[state.state == "finished"]
            by_arm.setdefault(state.run.arm, []).append(state.seconds_per_iteration)
    return {arm: sum(p) / len(p) for arm, p in (paces[False] | paces[True]).items()}


def _seconds_left(state: RunState, paces: dict[str, float]) -> float | None:
    pace = paces.get(state.run.arm)
    return None if pace is None else pace * (state.total - state.iteration)


def _hours(total: float, unknown: int, arrays: list[Array]) -> str:
    runs = sum(len(pack) for array in arrays for pack in array.packs)
    if unknown == runs:
        return "GPU hours: unknown; no iteration of these configurations has been finished yet"
    if not any(array.resources.gpus_per_run for array in arrays):
        return "GPU hours: none asked for"
    text = f"GPU hours: about {total:,.2f}, from the iterations finished so far, without start-up"
    return f"{text} and without {unknown} run(s) whose pace is unknown" if unknown else text


def _too_long(
    arrays: list[Array], states: dict[str, RunState], paces: dict[str, float]
) -> list[str]:
    """Arms whose runs take longer than the time limit, or whose iterations take longer than the
    signal comes before it."""
    lines = {}
    for array in arrays:
        limit, warning = 60 * array.resources.time, array.resources.signal_s
        for start in (start for pack in array.packs for start in pack):
            arm = start.run.arm
            seconds = _seconds_left(states[start.name], paces)
            if seconds is None or seconds <= limit:
                continue
            lines[arm] = (
                f"{arm}: a run takes about {duration(seconds)}, longer than the limit of "
                f"{duration(limit)}: it is stopped with a checkpoint and queued again"
            )
            if paces[arm] > warning:
                lines[arm] = (
                    f"{arm}: an iteration takes about {duration(paces[arm])}, and a run gets the "
                    f"signal {duration(warning)} before its time limit, too late for a checkpoint; "
                    f"set signal_s={2 * round(paces[arm])}"
                )
    return list(lines.values())
