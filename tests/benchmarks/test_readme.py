"""The README's ratios are those of the committed run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLUMNS = ("shared / floor", "unshared / shared", "one at a time / shared", "shared / dance-grpo")


def test_the_readme_quotes_the_committed_run() -> None:
    text = (ROOT / "benchmarks" / "results" / "iteration_time_cpu.md").read_text()
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if "shared / floor |" in line]
    measured = []
    for head in heads:  # the embedded model, then the larger one
        names = [cell.strip() for cell in lines[head].split("|")]
        row = next(line for line in lines[head:] if line.startswith("| mixgrpo |"))
        cells = [cell.strip() for cell in row.split("|")]
        measured.append([cells[names.index(c)].split(" ")[0] for c in COLUMNS])
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("| `mixgrpo` | embedded task |") :]
    quoted = re.findall(r"^\| [^|]+ \| ([\d.]+) \| ([\d.]+) \|$", table, re.MULTILINE)[:4]
    assert [list(pair) for pair in quoted] == [list(p) for p in zip(*measured, strict=True)]
