"""Views as the report's text files hold them."""

from collections.abc import Sequence

from harness.tables import latex_table, markdown_table
from harness.views import View


def markdown(views: Sequence[View]) -> str:
    """What follows the report's own tables in table.md: sentences, then tables, view by view."""
    parts: list[str] = []
    for view in views:
        parts += [f"## {view.title}", *view.sentences]
        for table in view.tables:
            parts += [f"### {table.title}", markdown_table(table), table.note]
    return "".join(f"\n{part}\n" for part in parts if part)


def latex(views: Sequence[View]) -> str:
    """What follows the report's own tables in table.tex: a float for every table."""
    return "".join(f"\n{latex_table(table)}\n" for view in views for table in view.tables)
