"""Writes the measurements of `flux_iteration` as tables beside the published ratios.

    python -m benchmarks.flux_report DIR

Reads DIR/flux_iteration_*.json and writes a .md beside each.
"""

import json
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.ratios import Spread, markdown
from mixgrpo import cli
from mixgrpo.errors import ConfigError
from mixgrpo.files.atomic import write_text

DANCE = "dance-grpo, 14 steps"
_PUBLISHED_DANCE = 291.284
PUBLISHED = {
    "dance-grpo, 4 steps": 149.978,
    "mixgrpo, l = 5": 150.839,
    "mixgrpo-flash": 112.372,
    "mixgrpo-flash-star": 83.278,
}
"""Seconds per iteration on 32 GPUs, DanceGRPO 291.284 (MixGRPO, arXiv 2507.21802, main table). Its
MixGRPO is the mean over a run, which l = 5 is nearest to."""
TARGETS = {"mixgrpo, l = 5": 0.44, "mixgrpo-flash": 0.30, "mixgrpo-flash-star": 0.26}

_NOTE = """\
Weights are random; shapes and operations are those of the architecture named above. An iteration is
`Trainer.iterate` on one prompt with adapters (LoRA) on the attention and gradient checkpointing,
T = 25. *sharing on*: the images of a group begin from one noise and are computed once as long as
they are the same. l: the window's first step; T~: steps of an image; forward and backward:
evaluations of the network, counted and equal to the plan's. Seconds are medians over rounds.
MFU: the operations of the passes (an update's without what checkpointing computes again) per
second, relative to the rate of matrix products measured in the same call. Peak memory: of the
device; on a CPU of the whole process so far. On a CPU, where other work may be going on, the
column seconds, ratios and MFU are of the processor's time, and only phases are of the clock."""

Measurement = dict[str, Any]
Key = tuple[str, bool]


def page(runs: list[dict[str, Any]]) -> str:
    """All calls of one file, those with the same settings together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        same = {k: run["made_on"][k] for k in ("device", "torch", "commit")} | run["options"]
        groups.setdefault(json.dumps(same), []).append(run)
    parts = ["# Time of one iteration of FLUX", _NOTE]
    for group in groups.values():
        sizes = sorted({m["images"] for run in group for m in run["measurements"]})
        parts += [section(group, images) for images in reversed(sizes)]
    return "\n\n".join(parts) + "\n"


def section(runs: list[dict[str, Any]], images: int) -> str:
    """The tables of calls with the same settings and size of group."""
    calls = [
        (run, [_placed(run, m) for m in run["measurements"] if m["images"] == images])
        for run in runs
    ]
    calls = [(run, found) for run, found in calls if found]
    run = calls[0][0]
    about = ", ".join(f"{k} {v}" for k, v in run["made_on"].items() if v is not None)
    options = ", ".join(f"{k} {v}" for k, v in run["options"].items())
    rates = [run["probe"]["matmul"] / 1e12 for run, _ in calls]
    lines = [
        f"## {run['title']}: groups of {images} images",
        f"{about}; {options}. Matrix products: {median(rates):.4g} TFLOP/s.",
    ]
    if images < 12:
        lines.append(
            f"Groups of {images} and not of 12: whole iterations had no room in the time given. "
            "Sharing saves less in smaller groups, so ratios are not those of the paper's setting."
        )
    return "\n\n".join([*lines, times_table(calls), ratios_table(calls)])


def _placed(run: dict[str, Any], m: Measurement) -> Measurement:
    return {**m, "on_cpu": run["made_on"]["device"].startswith("CPU")}


Calls = list[tuple[dict[str, Any], list[Measurement]]]


def times_table(calls: Calls) -> str:
    """Seconds by phase, utilisation and memory of every variant."""
    rows = []
    for variant, shared in _keys(calls):
        taken = [
            (run["probe"], m)
            for run, found in calls
            for m in found
            if (m["variant"], m["shared"]) == (variant, shared)
        ]
        one = taken[0][1]
        phases = [
            median(m[f"seconds_{phase}"] for _, m in taken)
            for phase in ("rollout", "decode", "reward", "update", "other")
        ]
        rollout = median(utilisation(p, m, "rollout") for p, m in taken)
        update = median(utilisation(p, m, "update") for p, m in taken)
        total = Spread.of([_worked(m) for _, m in taken])
        rows.append(
            [
                variant,
                "on" if shared else "off",
                one["window"],
                one["steps"],
                one["forward"],
                one["backward"],
                total if len(taken) > 1 else f"{total.median:.4g}",
                *(f"{value:.3g}" for value in phases),
                f"{rollout:.0%}",
                f"{update:.0%}",
                f"{max(m['memory_peak_bytes'] for _, m in taken) / 2**30:.1f}",
            ]
        )
    header = ["variant", "sharing", "l", "T~", "forward", "backward", "seconds", "rollout"]
    header += ["decode", "reward", "update", "other", "MFU rollout", "MFU update", "peak GiB"]
    return markdown(header, rows)


def utilisation(probe: dict[str, Any], m: Measurement, phase: str) -> float:
    """Operations per second of a phase, relative to those of matrix products."""
    passes = {
        "rollout": m["rollout"] * probe["forward_flops"],
        "update": m["backward"] * probe["both_flops"],
    }
    waited = _worked(m) / m["seconds_total"]
    return float(passes[phase] / (m[f"seconds_{phase}"] * waited) / probe["matmul"])


def ratios_table(calls: Calls) -> str:
    """Seconds of every variant by DanceGRPO's, both with sharing or both without; and what sharing
    saves."""
    rows = []
    for variant in dict.fromkeys(name for name, _ in _keys(calls)):
        shared, own = (ratio(calls, (variant, way), (DANCE, way)) for way in (True, False))
        saved = ratio(calls, (variant, True), (variant, False))
        target = TARGETS.get(variant)
        verdict = ""
        if target is not None and shared is not None:
            reached = "reached" if shared.median <= target else "not reached"
            verdict = f"<= {target:.2f}: {reached}"
        published = PUBLISHED.get(variant)
        paper = "" if published is None else f"{published / _PUBLISHED_DANCE:.3f}"
        cells = ["" if value is None else value for value in (shared, own, saved)]
        rows.append([variant, *cells, paper, verdict])
    header = ["variant", "/ dance-grpo, sharing on", "/ dance-grpo, sharing off"]
    return markdown([*header, "sharing on / off", "paper", "target, sharing on"], rows)


def ratio(calls: Calls, over: Key, under: Key) -> Spread | None:
    """Over the rounds in which both were timed; of their medians where no call timed both; None
    where one was not timed at all."""

    def by_round(found: list[Measurement], key: Key) -> dict[int, float]:
        return {m["round"]: _worked(m) for m in found if (m["variant"], m["shared"]) == key}

    values = []
    for _, found in calls:
        above, below = by_round(found, over), by_round(found, under)
        values += [above[r] / below[r] for r in sorted(above.keys() & below.keys())]
    if not values:  # timed in calls of their own
        both = [[v for _, m in calls for v in by_round(m, key).values()] for key in (over, under)]
        values = [median(both[0]) / median(both[1])] if all(both) else []
    return Spread.of(values) if values else None


def _worked(m: Measurement) -> float:
    """Seconds of an iteration; on a CPU those of the processor, which may have other work."""
    return float(m["seconds_processor" if m["on_cpu"] else "seconds_total"])


def _keys(calls: Calls) -> list[Key]:
    """Every variant and way of sharing that was timed, in the order of the variants."""
    from benchmarks.flux_iteration import NAMES

    found = {(m["variant"], m["shared"]) for _, measured in calls for m in measured}
    return sorted(found, key=lambda key: (NAMES.index(key[0]), not key[1]))


def main(folder: Annotated[Path, typer.Argument(help="Folder of the measurements.")]) -> None:
    """Write tables of all measurements beside them, and print them."""
    files = sorted(folder.glob("flux_iteration_*.json"))
    if not files:
        raise ConfigError(f"{folder}: holds no flux_iteration_*.json; run the benchmark first")
    for file in files:
        text = page(json.loads(file.read_text())["runs"])
        write_text(file.with_suffix(".md"), text)
        print(text)


if __name__ == "__main__":
    cli.run(main)
