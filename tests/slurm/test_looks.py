"""Seeds until it is decided, on a real Slurm: each look is one array."""

import os
import signal

from harness.slurm import submissions

from ..harness.lab import Lab
from ..harness.test_until_decided import LOOKS, fake, seeds


def test_each_look_is_one_array_and_an_interrupted_command_follows_it(lab: Lab) -> None:
    lab.write(LOOKS)
    launcher = lab.launch(fake=fake(interval_3_seed3={"seconds": 1.0}))
    lab.wait_for(lambda s: s["interval=3-seed3"].state == "running")
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=lab.patience_s)
    assert "go on in Slurm without this command" in output
    code, output = lab.finish(fake=fake())
    assert code == 0, output
    assert seeds(lab) == {"interval=1": 6, "interval=2": 3, "interval=3": 6}
    made = submissions.read(lab.runs / "toy")
    assert [len(submission.tasks) for submission in made] == [9, 2, 4]
    assert "15 runs were needed; 6 seeds for every arm would have been 18: 3 saved" in output
