"""Views as the report's text files hold them."""

from collections.abc import Sequence

from harness.tables import latex_table, markdown_section
from harness.views import View
from mixgrpo.escape import markdown_block


def markdown(views: Sequence[View]) -> str:
    """What follows the report's own tables in table.md: sentences, then tables, view by view."""
    parts: list[str] = []
    for view in views:
        parts += [f"## {markdown_block(view.title)}", *map(markdown_block, view.sentences)]
        for table in view.tables:
            parts += markdown_section(table, "###")
    return "".join(f"\n{part}\n" for part in parts if part)


def latex(views: Sequence[View]) -> str:
    """What follows the report's own tables in table.tex: a float for every table."""
    return "".join(f"\n{latex_table(table)}\n" for view in views for table in view.tables)
