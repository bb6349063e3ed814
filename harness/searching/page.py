"""The page of the report of a search, one HTML file with everything in it."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

from harness.searching import confirm
from harness.searching.words import Told, answer, more, shown
from harness.tables import Table

if TYPE_CHECKING:
    from harness.figures import Picture


def page(told: Told, pictures: "list[Picture]", found: list[Table]) -> str:
    import jinja2

    search = told.search
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("harness"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["tight"] = lambda text: text.replace(" = ", "\u00a0=\u00a0").replace(
        " %", "\u00a0%"
    )
    arguments = shown(search.file) + (f" --profile {search.profile}" if search.profile else "")
    arguments += "".join(f" --set '{text}'" for text in search.overrides)
    return env.get_template("search.html").render(
        name=search.report_name,
        profile=search.profile,
        question=search.question,
        answer=answer(told),
        more=[text.replace("`", "") for text in more(told)],
        notes=search.notes,
        pictures=[
            {
                "title": one.title,
                "caption": one.caption,
                "source": f"data:image/png;base64,{base64.b64encode(one.png).decode()}",
            }
            for one in pictures
        ],
        tables=found,
        made=_made(told),
        command_search=f"python -m harness.search {arguments}",
        command_report=f"python -m harness.search {arguments} --report",
        command_confirm=None
        if confirm.sweep_text(search, told.trials, Path()) is None
        else f"python -m harness.sweep reports/{search.report_name}/{confirm.FILE}",
    )


def _made(told: Told) -> list[tuple[str, str]]:
    search = told.search
    ranges = "; ".join(f"{one.label}: {one.text}" for one in search.space)
    goal = f"{search.measure} up"
    if search.objectives[1:]:
        goal += f", {search.objectives[1]} down"
    budget = search.budget.model_dump(exclude_none=True) if search.budget else {}
    made = [
        ("Search file", shown(search.file)),
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
