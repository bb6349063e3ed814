"""The files that say a run is finished, as the trainer leaves them."""

import json
from pathlib import Path
from typing import Any

from mixgrpo.files.atomic import write_json
from mixgrpo.files.records import EVALUATIONS, METRICS, RESULT, measured, sealed
from mixgrpo.settings.config import SCHEMA_VERSION, RunConfig
from mixgrpo.settings.identity import config_hash

REWARDS = ("composition", "palette", "strict")


def write_finished_files(
    folder: Path, config: RunConfig, metrics: bytes, evals: list[dict[str, Any]]
) -> None:
    """Write metrics.jsonl (its content), eval.jsonl (its lines) and the result that agrees."""
    lines = "".join(json.dumps(line) + "\n" for line in evals).encode()
    (folder / METRICS).write_bytes(metrics)
    (folder / EVALUATIONS).write_bytes(lines)
    before, after = (
        {name: line[f"reward_{name}_mean"] for name in REWARDS} for line in (evals[0], evals[-1])
    )
    total = config.iterations
    result = {
        "schema": SCHEMA_VERSION,
        "hash": config_hash(config),
        "seed": config.seed,
        "iterations": total,
        "before": before,
        "after": after,
        "seconds_total": 0.985 * total,
        "evaluations_computed": 2192 * total,
        "backward_computed": 320 * total,
        "nfe_rollout": 25.0,
        "nfe_train": 4.0,
        "digests": {
            METRICS: measured(metrics).model_dump(),
            EVALUATIONS: measured(lines).model_dump(),
        },
    }
    write_json(folder / RESULT, sealed(result))
