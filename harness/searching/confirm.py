"""Which settings a search found best, and the sweep file that tests them on fresh seeds.

The search has seen its own seeds: the best of many noisy values is too good. So the best settings
are run anew, with seeds that no trial had, against the reference, as any sweep.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runs.source import relative
from harness.searching.records import asked_of, rows_of, whole_trials
from harness.searching.space import label
from mixgrpo.settings.configfile import read_override
from mixgrpo.settings.yamlfile import dump_yaml

if TYPE_CHECKING:
    import pandas as pd

    from harness.searching.file import Search

FILE = "confirm.yaml"
REFERENCE = "reference"


def pareto(trials: "pd.DataFrame", cost: str) -> list[int]:
    """Numbers of the trials that no other equals or beats in reward and cost at once.

    `trials` have `number`, `reward` and `cost`. The highest reward first; of equal ones, the one
    that was tried first.
    """
    ranked = trials.sort_values(["reward", cost, "number"], ascending=[False, True, True])
    cheapest_before = ranked[cost].cummin().shift(fill_value=float("inf"))
    return [int(number) for number in ranked["number"][ranked[cost] < cheapest_before]]


def ranked(search: "Search", trials: "pd.DataFrame") -> list[int]:
    """Numbers of the trials with all seeds that keep the budget, the highest reward first; with a
    cost among the objectives, the Pareto-optimal ones alone."""
    usable = whole_trials(trials)
    usable = usable[usable["feasible"]]
    if len(search.objectives) > 1:
        return pareto(usable, search.objectives[1])
    order = usable.sort_values(["reward", "number"], ascending=[False, True])["number"]
    return [int(number) for number in order]


def best(search: "Search", trials: "pd.DataFrame") -> list[int]:
    """Numbers of the trials that are worth a confirmation, without those of the reference.

    With a cost among the objectives, of the Pareto-optimal ones: that of the highest reward, then
    the cheapest whose reward is not below the reference's, then the next highest. Else those of the
    highest reward that keep the budget.
    """
    order, rows, base = ranked(search, trials), rows_of(trials), reference(trials)
    if len(search.objectives) > 1:
        bar = -float("inf") if base is None else rows[base]["reward"]
        good = [number for number in order if rows[number]["reward"] >= bar]
        # The rewards of Pareto-optimal trials fall with their cost.
        order = list(dict.fromkeys([*order[:1], *good[-1:], *order]))
    return [number for number in order if number != base][: search.confirm.best]


def reference(trials: "pd.DataFrame") -> int | None:
    """Number of the first trial of `enqueue`, or else none."""
    enqueued = trials[trials["enqueued"] & ~trials["free"]]
    return int(enqueued["number"].min()) if len(enqueued) else None


def sweep_text(search: "Search", trials: "pd.DataFrame", folder: Path) -> str | None:
    """The text of the sweep file that lies in `folder`; None where there is nothing to confirm."""
    numbers, rows = best(search, trials), rows_of(trials)
    base = search.enqueue[0] if search.enqueue else None
    if not numbers or (base is None and len(numbers) < 2):
        return None
    arms: dict[str, Any] = {}
    if base is not None:
        arms[REFERENCE] = {"label": "the reference", **base}
    for number in numbers:
        asked = asked_of(search, rows[number])
        text = label(search.space, asked, base) or label(search.space, asked)
        arms[f"trial-{number}"] = {"label": f"trial {number}: {text}", **asked}
    overrides = {key: value for key, value, _ in map(read_override, search.overrides)}
    first, count = search.confirm.first_seed, search.confirm.seeds
    made_by = f"python -m harness.search {search.file.name}"
    data: dict[str, Any] = {
        "name": search.confirm_name,
        "question": f"Do the best settings of the search {search.report_name} hold on fresh seeds?",
        "base": search.base and relative(search.base, folder),
        "set": dict(search.shared) | overrides,
        "arms": arms,
        "reference": next(iter(arms)),
        "measure": search.measure,
        "seeds": list(range(first, first + count)),
        "notes": (
            f"Made by {made_by}: settings that a search found best, on seeds that it had not seen."
        ),
        "slurm": {key: value for part, _ in search.slurm for key, value in part.items()},
    }
    head = f"# Made by `{made_by}`, which makes it again; run it like any sweep.\n"
    # Through JSON, for YAML has no tuples.
    said = json.loads(json.dumps({key: value for key, value in data.items() if value}))
    return head + dump_yaml(said, allow_unicode=True, width=100)
