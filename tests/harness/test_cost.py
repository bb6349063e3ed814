"""What sweeps cost by the paper's times: each run once, as it is computed once."""

from pathlib import Path

import pytest

from harness import cost

SWEEP = """\
name: {name}
question: Which interval is best?
arms:
  one: {{window.interval: 25}}
  other: {{window.interval: {other}}}
seeds: 3
set: {{iterations: 300}}
profiles: {{flux: {{}}}}
"""


def test_a_run_that_stands_in_two_sweeps_counts_once(tmp_path: Path) -> None:
    files = []
    for name, other in (("first", 20), ("second", 30)):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(SWEEP.format(name=name, other=other))
    # The paper's MixGRPO: seconds, iterations, GPUs, seconds of an hour.
    hours = 150.839 * 300 * 32 / 3600
    lines = cost.sweeps(files, "flux").splitlines()
    assert lines[2] == f"| first | 2 | 3 | 6 | {6 * hours:,.0f} |"
    assert lines[3] == f"| second | 2 | 3 | 6 | {6 * hours:,.0f} |"
    assert lines[4] == f"| together | | | 9 | {9 * hours:,.0f} |"
    assert cost.gpu_hours("MixGRPO") == pytest.approx(hours)
