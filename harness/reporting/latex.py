"""Tables for print: LaTeX floats with booktabs rules."""

from harness.reporting.tables import Table
from mixgrpo.text.escape import latex, latex_row

NEEDED = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}"


MOST_CHARACTERS = 130
"""A wider table would be shrunk until nobody can read it: its cells are broken into lines."""


def latex_table(table: Table) -> str:
    """One float as wide as the line."""
    wide = sum(2 + max(map(len, column)) for column in _columns_of(table)) > MOST_CHARACTERS
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(f'{table.title}. {table.note}'.strip())}}}",
            r"\medskip",
            *(_broken(table) if wide else _shrunk(table)),
            r"\end{table}",
        ]
    )


def _columns_of(table: Table) -> list[tuple[str, ...]]:
    return list(zip(table.columns, *table.rows, strict=True))


def _shrunk(table: Table) -> list[str]:
    head, *body = (f"{latex_row(cells)} \\\\" for cells in (table.columns, *table.rows))
    return [
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        *_ruled(head, body),
        r"\end{tabular}}",
    ]


def _broken(table: Table) -> list[str]:
    """Small letters; each column as wide as its longest word and its texts need."""
    wanted = [
        # Bounded, so that a text without spaces leaves room for the other columns.
        min(
            120,
            max(
                2 + max(len(word) for cell in column for word in cell.split() or [""]),
                min(max(map(len, column)), 12 + sum(map(len, column)) // len(column) // 2),
            ),
        )
        for column in _columns_of(table)
    ]
    widths = "".join(
        rf"p{{\dimexpr{width / sum(wanted):.4f}\linewidth-6pt\relax}}" for width in wanted
    )
    head, *body = (
        " & ".join(rf"\raggedright {latex(cell)}" for cell in cells) + r" \tabularnewline"
        for cells in (table.columns, *table.rows)
    )
    return [
        r"\scriptsize\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{{widths}}}",
        *_ruled(head, body),
        r"\end{tabular}",
    ]


def _ruled(head: str, body: list[str]) -> list[str]:
    return [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
