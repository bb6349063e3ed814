"""The page of the report of a search, one HTML file with everything in it."""

from typing import TYPE_CHECKING

from harness import page as shared
from harness.advice import command
from harness.searching.words import Told, answer, more
from harness.tables import Table

if TYPE_CHECKING:
    from harness.figures import Picture


def page(told: Told, pictures: "list[Picture]", found: list[Table]) -> str:
    search = told.search
    arguments = shared.arguments(search.file, search.profile, search.overrides)
    return shared.render(
        "search.html",
        name=search.report_name,
        profile=search.profile,
        question=search.question,
        answer=answer(told),
        more=more(told),
        notes=search.notes,
        pictures=pictures,
        tables=found,
        made=_made(told),
        command_search=f"python -m harness.search {arguments}",
        command_report=f"python -m harness.search {arguments} --report",
        command_confirm=None
        if told.confirmation is None
        else command("harness.sweep", shared.shown(told.confirmation)),
    )


def _made(told: Told) -> list[tuple[str, str]]:
    search = told.search
    ranges = "; ".join(f"{one.label}: {one.text}" for one in search.space)
    goal = f"{search.measure} up"
    if search.objectives[1:]:
        goal += f", {search.objectives[1]} down"
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    made = [
        ("Search file", shared.shown(search.file)),
        ("Profile", search.profile),
        ("Settings on top", ", ".join(search.overrides)),
        ("Ranges", ranges),
        ("Objective", goal),
        ("Budget of a run", ", ".join(f"{value:,} {name}" for name, value in budget.items())),
        ("Seeds of the search", ", ".join(map(str, search.seeds))),
        ("Sampler", f"Optuna's TPE, seed {search.sampler_seed}"),
        *(("Machine", text) for text in told.made.get("machines", [])),
    ]
    return [(term, text) for term, text in made if text]
