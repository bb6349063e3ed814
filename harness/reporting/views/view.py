"""The views of a study's page: each answers one question of its own with a table or a figure.

`budget` stands on every page; a sweep file's `views:` names the others. A view is made from the
finished runs alone, and where these do not have what it needs, it is left out.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.study.views import VIEWS

if TYPE_CHECKING:
    import pandas as pd

    from harness.analysis.analyse import Analysis
    from harness.analysis.results import Results
    from harness.reporting.figures import Picture
    from harness.reporting.tables import Table


@dataclass(frozen=True)
class View:
    title: str
    sentences: tuple[str, ...]
    """The answer, in one or more."""
    tables: "tuple[Table, ...]"
    pictures: "tuple[Callable[[], Picture], ...]"
    """Each draws when called: who wants the sentences alone draws nothing."""
    brief: str = ""
    """The answer for a reader of ten seconds, where the sentences say more than that."""
    name: str = ""
    """Its key in `VIEWS`; set by `make_views`."""

    @property
    def in_one_line(self) -> str:
        return self.brief or " ".join(self.sentences)


def make_views(
    analysis: "Analysis",
    results: "Results",
    probes: "pd.DataFrame | None",
    names: Iterable[str],
) -> list[View]:
    """The named views, each once; without those that have no data."""
    views = []
    for name in dict.fromkeys(names):
        module, _, function = VIEWS[name].partition(":")
        view: View | None = getattr(importlib.import_module(module), function)(
            analysis, results, probes
        )
        if view is not None:
            views.append(replace(view, name=name))
    return views


def answer(views: Iterable[View], name: str) -> str:
    """What the view `name` answers in one line, or that it has nothing to answer from; empty
    without a name."""
    if not name:
        return ""
    answers = [view.in_one_line for view in views if view.name == name]
    nothing = f"Cannot conclude: the runs do not have yet what the view {name} is made from."
    return answers[0] if answers else nothing
