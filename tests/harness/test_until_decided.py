"""`harness.sweep` with looks, through real launcher and job processes."""

import math
import re
from typing import Any

from .lab import SWEEP, Lab

LOOKS = SWEEP.replace("seeds: 2", "seeds: {looks: [3, 4, 6], until: decided}").replace(
    "[1, 3]", "[1, 2, 3]"
)


def fake(**rest: Any) -> dict[str, Any]:
    """Arm 2 is better by far, arm 3 by noise alone."""
    scores = {
        f"interval={arm}-seed{seed}": {
            "score": 0.4 + 0.1 * math.cos(seed) + gain + noise * math.sin(2.4 * seed)
        }
        for arm, gain, noise in ((1, 0.0, 0.0), (2, 0.5, 0.002), (3, 0.0, 0.05))
        for seed in range(6)
    }
    for name, behaviour in rest.items():
        scores[name.replace("_", "=", 1).replace("_", "-")] |= behaviour
    return scores | {"*": {"seconds": 0.02}}


def seeds(lab: Lab) -> dict[str, int]:
    states = lab.states().values()
    return {
        arm: sum(s.run.arm == arm and s.state == "finished" for s in states)
        for arm in ("interval=1", "interval=2", "interval=3")
    }


def test_the_command_says_the_verdicts_and_what_was_saved(lab: Lab) -> None:
    lab.write(LOOKS)
    code, output = lab.finish("--plan")
    assert code == 0, output
    assert "toy: 3 arms x 3 seeds = 9 runs" in output
    assert "looks at 3, 4, 6 seeds, at most 18 runs; now: look 1 at 3 seeds, 9 runs" in output
    code, output = lab.finish("--jobs", "2", fake=fake())
    assert code == 0, output
    assert seeds(lab) == {"interval=1": 6, "interval=2": 3, "interval=3": 6}
    end = output[output.index("15 of 15 runs finished") :]
    assert "interval=2: better after 3 seeds, +0.50" in end
    assert "interval=3: undecided after 6 seeds, " in end
    assert "15 runs were needed; 6 seeds for every arm would have been 18: 3 saved" in end
    code, output = lab.finish("--jobs", "2", fake=fake())
    assert (code, "started" in output) == (0, False)
    assert "15 runs were needed" in output
    for options in (("--only", "interval=2-seed5"), ("--rerun", "interval=2-seed5", "--yes")):
        code, output = lab.finish(*options)
        assert (code, "no look needs these runs now" in output) == (2, True), output


def test_after_a_kill_it_goes_on_at_the_same_look_and_a_second_command_follows(lab: Lab) -> None:
    lab.write(LOOKS)
    slow = fake(interval_1_seed3={"seconds": 0.4}, interval_3_seed3={"seconds": 0.4})
    launcher = lab.launch("--jobs", "2", fake=slow)
    lab.wait_for(lambda s: s["interval=1-seed3"].state == "running")
    launcher.kill()
    launcher.wait()
    first = lab.launch("--jobs", "2", fake=slow)
    assert first.stdout is not None
    second = lab.launch("--jobs", "2", fake=slow)
    outputs = [one.communicate(timeout=lab.patience_s)[0] for one in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert sum("runs this sweep: following it" in output for output in outputs) == 1
    for output in outputs:
        assert "15 runs were needed; 6 seeds for every arm would have been 18: 3 saved" in output
    # Whichever came first: the runs of the first look are not made again, nor others of arm 2.
    started = re.findall(r"(interval=\d-seed\d): started", "".join(outputs))
    assert not {name for name in started if name[-1] in "012" or name.startswith("interval=2")}
    assert len(started) == len(set(started))
    assert seeds(lab) == {"interval=1": 6, "interval=2": 3, "interval=3": 6}
    assert all(reasons in ([], ["finished"]) for reasons in lab.attempts().values())


def test_a_failed_run_does_not_hold_up_the_looks(lab: Lab) -> None:
    lab.write(LOOKS)
    code, output = lab.finish("--jobs", "2", fake=fake(interval_3_seed1={"raise_at": 1}))
    assert code == 1, output
    assert "interval=3-seed1: failed: ValueError" in output
    assert "interval=3: undecided after 6 seeds (5 with a pair)" in output
    assert seeds(lab) == {"interval=1": 6, "interval=2": 3, "interval=3": 5}


def test_the_option_gives_a_file_of_fixed_seeds_looks(lab: Lab) -> None:
    lab.write(SWEEP)
    code, output = lab.finish("--plan", "--until-decided")
    assert code == 0, output
    assert "looks at 5, 8, 12, 16, 24, 32 seeds, at most 64 runs" in output
    lab.write(SWEEP.replace("[1, 3]", "[1]"))
    code, output = lab.finish("--until-decided")
    assert code == 2
    assert "no arm is compared with another" in output
