"""What came out of a search, and how its report says it: in sentences and in tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.reporting import findings
from harness.reporting.page import shown
from harness.reporting.tables import Table, markdown_section
from harness.reporting.tables import tables as sweep_tables
from harness.runs.environment import Machine
from harness.searching import confirm
from harness.searching.file import Search
from harness.searching.records import asked_of, rows_of
from harness.searching.study import STATES
from harness.study.arms import value_text
from harness.text import NOTHING, command_for, number
from mixgrpo.text.escape import markdown_block
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.analyse import Analysis


@dataclass(frozen=True)
class Outcome:
    """What a report is made of."""

    search: Search
    trials: "pd.DataFrame"
    """As `records.to_frame` makes it."""
    machines: tuple[Machine, ...] = ()
    confirmed: "Analysis | None" = None
    """What the fresh seeds say."""
    confirmation: Path | None = None
    """The sweep file that confirms the best settings; None where there is nothing to confirm."""

    @property
    def unit(self) -> str:
        """What a second is."""
        one_core = bool(self.machines) and all(machine.one_core for machine in self.machines)
        return "seconds of one core's time" if one_core else "seconds"

    def command(self, *options: str) -> str:
        """The command of this search, with options."""
        return command_for("harness.search", self.search, *options, file=shown(self.search.file))


BIASED = (
    "The highest reward of a search is no measurement of its setting: of many noisy values the "
    "highest is too high, and the settings that were given up have fewer seeds. Figures and tables "
    "of the search say where to look; only the fresh seeds compare."
)


def answer(outcome: Outcome) -> str:
    if outcome.confirmed is not None:
        return findings.answer(outcome.confirmed)
    if outcome.confirmation is not None:
        return "The best settings that the search found are not confirmed on fresh seeds yet."
    reference = outcome.search.enqueue and confirm.reference(outcome.trials) is not None
    if reference and (outcome.trials["state"] == "complete").any():
        return "Nothing is to be confirmed: no finished trial beats the file's own settings."
    return "Nothing is to be confirmed yet: too few trials have finished."


def more(outcome: Outcome) -> list[str]:
    """What stands below the answer."""
    analysis, text = outcome.confirmed, []
    if analysis is not None:
        seeds = ", ".join(map(str, analysis.sweep.seeds))
        text.append(f"Measured with the seeds {seeds}, which the search had not seen.")
        base = analysis.reference
        ratios = {
            result.arm.label: result.cost.evaluations / base.cost.evaluations
            for result in analysis.arms
            if result.arm.name != analysis.sweep.reference
        }
        parts = [f"{x:.2f} for {label}" for label, x in ratios.items() if math.isfinite(x)]
        if parts:
            text.append(
                f"Network evaluations as a multiple of {base.arm.label}'s: {', '.join(parts)}."
            )
        text += filter(None, [findings.resolution(analysis)])
    elif outcome.confirmation is not None:
        text.append(f"Until they have run nothing is called better: {outcome.command()}")
    else:
        text.append(
            "What is left of the search, and what a larger number of trials in its file asks "
            f"for: {outcome.command()}"
        )
    return [*text, _counted(outcome.trials), BIASED]


def _counted(trials: "pd.DataFrame") -> str:
    states = trials["state"][~trials["free"]]
    text = f"{len(states)} settings were tried: {(states == 'complete').sum()} with all seeds"
    for state, words in (("pruned", "given up early"), ("failed", "failed")):
        if count := (states == state).sum():
            text += f", {count} {words}"
    if free := len(trials) - len(states):
        text += (
            f"; {free} more came to nothing (they cannot be run, are over the budget, or were "
            "tried before)"
        )
    return f"{text}; {duration(float(trials['spent'].sum()))} of training in all."


def tables(outcome: Outcome) -> list[Table]:
    confirmed = sweep_tables(outcome.confirmed)[:2] if outcome.confirmed is not None else []
    made = [Table(f"On fresh seeds: {t.title}", t.columns, t.rows, t.note) for t in confirmed]
    best, costs = confirm.ranked(outcome.search, outcome.trials), outcome.search.objectives[1:]
    if costs:
        title = f"Pareto-optimal in reward and {costs[0]}"
    else:
        title, best = "The highest rewards of the search", best[:5]
    note = (
        "In the order they were asked for. The reward is the mean over the seeds that ran; a dash: "
        "none did."
    )
    every = list(rows_of(outcome.trials))
    return [
        *made,
        _trial_table(outcome, title, best, BIASED),
        _trial_table(outcome, "All trials", every, note, why=True),
    ]


def _trial_table(
    outcome: Outcome, title: str, numbers: Sequence[int], note: str, why: bool = False
) -> Table:
    search, rows = outcome.search, rows_of(outcome.trials)
    reference = confirm.reference(outcome.trials)
    columns = ["trial", *(one.label for one in search.space), search.measure, "seeds"]
    columns += ["evaluations", outcome.unit] + ["what became of it"] * why

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        asked, count = asked_of(search, row), row["evaluations"]
        state: str = STATES[row["state"]]
        return (
            f"{row['number']}{' (reference)' if row['number'] == reference else ''}",
            *(value_text(asked.get(one.key, NOTHING)) for one in search.space),
            number(row["reward"]),
            str(row["seeds"]),
            f"{count:,.0f}" if math.isfinite(count) else NOTHING,
            number(row["seconds"], 1),
            *[f"{state}: {row['why']}" if row["why"] else state] * why,
        )

    return Table(title, tuple(columns), tuple(cells(rows[n]) for n in numbers), note)


def markdown(outcome: Outcome, made: list[Table]) -> str:
    """The question, the answer and the tables as Markdown."""
    said = [outcome.search.question, answer(outcome), *more(outcome)]
    parts = [f"# {markdown_block(said[0])}", *map(markdown_block, said[1:])]
    for table in made:
        parts += markdown_section(table)
    return "\n\n".join(parts) + "\n"
