"""Every number of a report in one table to compute with: table.csv."""

from typing import TYPE_CHECKING, Any

from harness.analysis.analyse import Analysis
from harness.stats import Interval
from mixgrpo.text.escape import csv_cell

if TYPE_CHECKING:
    import pandas as pd


def frame(analysis: Analysis) -> "pd.DataFrame":
    """Every number of the report, one row per arm."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for result in analysis.arms:
        row: dict[str, Any] = {
            "arm": result.arm.name,
            "label": result.arm.label,
            "reference": analysis.is_reference(result.arm.name),
            "seeds": len(result.seeds),
        }
        for reward, change in result.rewards.items():
            for part in ("before", "after", "change"):
                row |= _columns(f"{reward}_{part}", getattr(change, part))
        comparison = result.comparison
        if comparison is not None:
            row |= _columns("difference", comparison.difference)
            row |= _columns("difference_simultaneous", comparison.simultaneous)
            row |= {
                "pairs": len(comparison.seeds),
                "p_t": comparison.p,
                "p_t_holm": comparison.p_holm,
                "p_sign_flip": comparison.p_sign_flip,
                "p_sign_flip_holm": comparison.p_sign_flip_holm,
                "detectable_difference": comparison.detectable,
                "margin": comparison.margin,
                "verdict": comparison.verdict,
                "verdict_rests_on": comparison.reason,
            }
        row |= {
            "nfe_old_min": result.cost.nfe_rollout[0],
            "nfe_old_max": result.cost.nfe_rollout[1],
            "nfe_theta_min": result.cost.nfe_train[0],
            "nfe_theta_max": result.cost.nfe_train[1],
            "evaluations_per_iteration": result.cost.evaluations,
            "backward_per_iteration": result.cost.backward,
            "seconds_per_iteration_median": result.cost.seconds.median,
            "seconds_per_iteration_q25": result.cost.seconds.low,
            "seconds_per_iteration_q75": result.cost.seconds.high,
        }
        row |= {f"seconds_{phase}_median": value for phase, value in result.cost.phases.items()}
        if result.cost.time_ratio is not None:
            row |= _columns("time_ratio", result.cost.time_ratio)
        row["published_row"] = result.published.row
        row |= {f"published_{column}": value for column, value in result.published.values.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _columns(name: str, estimate: Interval) -> dict[str, Any]:
    return {
        f"{name}_mean": estimate.mean,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_sd": estimate.sd,
    }


def to_csv(analysis: Analysis) -> str:
    """Numbers as numbers; of texts, none that a spreadsheet would compute."""
    numbers = frame(analysis).rename(columns=csv_cell)
    numbers = numbers.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
    return str(numbers.to_csv(index=False, float_format="%.10g", lineterminator="\n"))
