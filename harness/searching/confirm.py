"""Which settings a search found best, and the sweep file that tests them on fresh seeds.

The search has seen its own seeds: the best of many noisy values is too good. So the best settings
are run anew, with seeds that no trial had, against the reference, as any sweep.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    found: list[int] = []
    cheapest = float("inf")
    ranked = trials.sort_values(["reward", cost, "number"], ascending=[False, True, True])
    for number, value in zip(ranked["number"].tolist(), ranked[cost].tolist(), strict=True):
        if value < cheapest:
            found.append(number)
            cheapest = value
    return found


def best(search: "Search", trials: "pd.DataFrame") -> list[int]:
    """Numbers of the trials that are worth a confirmation, without the reference's own settings.

    With a cost among the objectives, of the Pareto-optimal ones: that of the highest reward, then
    the cheapest whose reward is not below the reference's, then the next highest. Else those of the
    highest reward that keep the budget.
    """
    own = reference(trials)
    usable = trials[(trials["state"] == "complete") & ~trials["free"] & trials["feasible"]]
    if len(search.objectives) == 1:
        ranked = usable.sort_values(["reward", "number"], ascending=[False, True])["number"]
        order = [int(number) for number in ranked]
    else:
        cost = search.objectives[1]
        order = pareto(usable, cost)
        bar = trials.loc[trials["number"] == own, "reward"]
        good = usable[usable["number"].isin(order)]
        good = good[good["reward"] >= (bar.iloc[0] if len(bar) else -float("inf"))]
        cheap = [int(number) for number in good.sort_values([cost, "number"])["number"]]
        order = list(dict.fromkeys([*order[:1], *cheap[:1], *order]))
    return [number for number in order if number != own][: search.confirm.best]


def reference(trials: "pd.DataFrame") -> int | None:
    """Number of the trial of the file's first own setting, or else none."""
    own = trials[trials["enqueued"] & ~trials["free"]]
    return int(own["number"].min()) if len(own) else None


def sweep_text(search: "Search", trials: "pd.DataFrame", folder: Path) -> str | None:
    """The text of the sweep file that lies in `folder`; None where there is nothing to confirm."""
    from harness.searching.records import asked_of

    numbers = best(search, trials)
    by_number = {number: asked_of(search, trials, number) for number in numbers}
    own = search.enqueue[0] if search.enqueue else None
    if not numbers or (own is None and len(numbers) < 2):
        return None
    arms: dict[str, Any] = {}
    if own is not None:
        arms[REFERENCE] = {"label": "the reference", **own}
    for number, asked in by_number.items():
        text = label(search.space, asked, own) or label(search.space, asked)
        arms[f"trial-{number}"] = {"label": f"trial {number}: {text}", **asked}
    first, count = search.confirm.first_seed, search.confirm.seeds
    data: dict[str, Any] = {
        "name": search.confirm_name,
        "question": f"Do the best settings of the search {search.report_name} hold on fresh seeds?",
    }
    if search.base is not None:
        data["base"] = Path(os.path.relpath(search.base.resolve(), folder.resolve())).as_posix()
    settings = dict(search.shared) | _overrides(search.overrides)
    if settings:
        data["set"] = settings
    data |= {
        "arms": arms,
        "reference": next(iter(arms)),
        "measure": search.measure,
        "seeds": list(range(first, first + count)),
        "notes": (
            f"Made by python -m harness.search {search.file.name}: settings that a search found "
            "best, on seeds that it had not seen."
        ),
    }
    slurm: dict[str, Any] = {}
    for part, _ in search.slurm:
        slurm |= part
    if slurm:
        data["slurm"] = slurm
    head = (
        f"# Made by `python -m harness.search {search.file.name}`, which makes it again; run it "
        "like any sweep.\n"
    )
    return head + dump_yaml(_plain(data), allow_unicode=True, width=100)


def _plain(value: Any) -> Any:
    """Without tuples and numpy's numbers, which YAML does not have."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") else value


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    read = [read_override(text) for text in texts]
    return {key: value for key, value, _ in read}
