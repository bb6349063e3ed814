"""What the report of a search says: its answer in sentences, its tables, and both as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reporting.page import arguments
from harness.reporting.tables import Table
from harness.reporting.tables import tables as sweep_tables
from harness.searching import confirm, records
from harness.searching.file import Search
from harness.study.arms import value_text
from harness.text import NOTHING, number
from mixgrpo.text.escape import markdown_block
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.analyse import Analysis


@dataclass(frozen=True)
class Told:
    """What a report is made of."""

    search: Search
    trials: "pd.DataFrame"
    made: dict[str, Any]
    confirmed: "Analysis | None"
    confirmation: Path | None
    """The sweep file that confirms what was found best; None where there is nothing to confirm."""
    unit: str
    """What a second is."""


def answer(told: Told) -> str:
    from harness.reporting import findings

    if told.confirmed is None and told.confirmation is None:
        own = told.search.enqueue and confirm.reference(told.trials) is not None
        return (
            "Nothing is to be confirmed: no finished trial beats the file's own settings."
            if own and (told.trials["state"] == "complete").any()
            else "Nothing is to be confirmed yet: too few trials have finished."
        )
    if told.confirmed is None:
        return "The best settings that the search found are not confirmed on fresh seeds yet."
    return findings.answer(told.confirmed)


def more(told: Told) -> list[str]:
    """What stands below the answer."""
    from harness.reporting import findings

    search, found = told.search, []
    if told.confirmed is not None:
        seeds = ", ".join(map(str, told.confirmed.sweep.seeds))
        found.append(f"Measured with the seeds {seeds}, which the search had not seen.")
        ratio = _cost_ratios(told.confirmed)
        if ratio:
            found.append(ratio)
        resolution = findings.resolution(told.confirmed)
        if resolution:
            found.append(resolution)
    else:
        command = (
            f"python -m harness.search {arguments(search.file, search.profile, search.overrides)}"
        )
        found.append(
            f"Until they have run nothing is called better: {command}"
            if told.confirmation is not None
            else "What is left of the search, and what a larger number of trials in its file asks "
            f"for: {command}"
        )
    return [*found, _counted(told), _biased(told)]


def _cost_ratios(analysis: "Analysis") -> str:
    base = analysis.reference.cost.evaluations
    parts = [
        f"{ratio:.2f} for {result.arm.label}"
        for result in analysis.arms
        if result.arm.name != analysis.sweep.reference
        and math.isfinite(ratio := result.cost.evaluations / base)
    ]
    if not parts:
        return ""
    return (
        f"Network evaluations as a multiple of {analysis.reference.arm.label}'s: "
        f"{', '.join(parts)}."
    )


def _counted(told: Told) -> str:
    trials = told.trials
    real = trials[~trials["free"]]
    done = int((real["state"] == "complete").sum())
    up = int((real["state"] == "pruned").sum())
    failed = int((real["state"] == "failed").sum())
    text = f"{len(real)} settings were tried: {done} with all seeds"
    if up:
        text += f", {up} given up early"
    if failed:
        text += f", {failed} failed"
    none = len(trials) - len(real)
    if none:
        text += (
            f"; {none} more came to nothing (they cannot be run, are over the budget, or were "
            "tried before)"
        )
    return f"{text}; {duration(float(trials['spent'].sum()))} of training in all."


def _biased(told: Told) -> str:
    return (
        "The highest reward of a search is no measurement of its setting: of many noisy values the "
        "highest is too high, and the settings that were given up have fewer seeds. Figures and "
        "tables of the search say where to look; only the fresh seeds compare."
    )


def tables(told: Told) -> list[Table]:
    found = []
    if told.confirmed is not None:
        found += [
            Table(f"On fresh seeds: {one.title}", one.columns, one.rows, one.note)
            for one in sweep_tables(told.confirmed)[:2]
        ]
    costs = told.search.objectives[1:]
    from harness.searching.records import whole_trials

    done = whole_trials(told.trials)
    if costs:
        numbers = confirm.pareto(done, costs[0])
        title = f"Pareto-optimal in reward and {costs[0]}"
    else:
        usable = done[done["feasible"]].sort_values(["reward", "number"], ascending=[False, True])
        numbers = [int(n) for n in usable["number"]][:5]
        title = "The highest rewards of the search"
    found.append(_trial_table(told, title, numbers, _biased(told)))
    every = [int(n) for n in told.trials["number"]]
    note = (
        "In the order they were asked for. The reward is the mean over the seeds that ran; a dash: "
        "none did."
    )
    found.append(_trial_table(told, "All trials", every, note, why=True))
    return found


def _trial_table(
    told: Told, title: str, numbers: Sequence[int], note: str, why: bool = False
) -> Table:
    search = told.search
    columns = ["trial", *(one.label for one in search.space), search.measure, "seeds"]
    columns += ["evaluations", told.unit] + (["what became of it"] if why else [])
    own = confirm.reference(told.trials)
    rows = []
    for n in numbers:
        row = told.trials[told.trials["number"] == n].iloc[0]
        asked = records.asked_of(search, told.trials, n)
        name = f"{n} (reference)" if n == own else str(n)
        settings = [
            value_text(asked[one.key]) if one.key in asked else NOTHING for one in search.space
        ]
        state = {"pruned": "given up"}.get(row["state"], row["state"])
        cells = [name, *settings, number(float(row["reward"])), str(int(row["seeds"]))]
        cells += [_count(row["evaluations"]), number(float(row["seconds"]), 1)]
        rows.append(tuple(cells + ([f"{state}: {row['why']}" if row["why"] else state] * why)))
    return Table(title, tuple(columns), tuple(rows), note)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NOTHING


def markdown(told: Told, found: list[Table]) -> str:
    from harness.reporting.tables import markdown_section

    said = [told.search.question, answer(told), *more(told)]
    parts = [f"# {markdown_block(said[0])}", *map(markdown_block, said[1:])]
    for table in found:
        parts += markdown_section(table)
    return "\n\n".join(parts) + "\n"
