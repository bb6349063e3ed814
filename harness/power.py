"""What a sweep takes to show an effect: seeds, runs and hours, said before it is run.

    python -m harness.power sweeps/tau.yaml --effect 0.02 --margin 0.02

From the spread of the sweep's runs that have finished. Where there are none, `--pilot 3` says how
to make the first ones. Starts nothing and writes nothing.
"""

from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.planning.power import describe, measure, pilot
from harness.planning.standing import compared
from harness.runs.state import look_at_all, sweep_folder
from harness.study.load import load_sweep
from harness.study.spec import Sweep
from harness.text import command_for
from mixgrpo.cli import run as run_command
from mixgrpo.cli import say
from mixgrpo.errors import ConfigError, RunError

LEAST = 3
"""Seeds of a pilot: fewer pairs have no spread."""


def main(
    file: cli.FileArgument,
    effect: Annotated[
        float, typer.Option(help="The difference to be shown, in units of the measure.")
    ],
    margin: Annotated[
        float | None,
        typer.Option(
            help="The difference up to which arms are equal. By default the file's number."
        ),
    ] = None,
    pilot_: Annotated[
        int | None,
        typer.Option("--pilot", min=LEAST, help="Seeds to run first where none has finished."),
    ] = None,
    profile: cli.ProfileOption = None,
    runs: cli.RunsOption = Path("runs"),
    set_: cli.SetOption = None,
    until_decided: cli.UntilDecidedOption = False,
) -> None:
    """Say how many seeds, runs and hours show an effect with 80 and 90 % chance."""
    for option, value in (("--effect", effect), ("--margin", margin)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option}: give a number above 0, not {value:g}")
    sweep = load_sweep(file, profile, set_ or [], until_decided=until_decided)
    if not compared(sweep):
        raise ConfigError(f"{file}: no arm is compared with another; add an arm")
    states = look_at_all(sweep, runs)
    if margin is None and not sweep.margin.of_gain:
        margin = sweep.margin.value
    measured = measure(sweep, states)
    if not measured:
        _say_pilot(sweep, runs, pilot_, until_decided)
        return
    varied = [one for one in measured if one.spread.sd > 0]
    if not varied:
        raise RunError(
            f"{runs / sweep.name}: {sweep.measure} differs from the reference's by the same with "
            "every seed, so that nothing is known about chance; train longer, or take another "
            "measure"
        )
    for line in describe(sweep, states, varied, sweep_folder(sweep, runs), effect, margin):
        say(line)


def _say_pilot(sweep: Sweep, runs: Path, seeds: int | None, until_decided: bool) -> None:
    """Which runs measure the spread. ConfigError where that is not asked for, or cannot be."""
    missing = f"no arm of {sweep.file} has {LEAST} pairs of finished runs in {runs / sweep.name}"
    if seeds is None:
        raise ConfigError(f"{missing}; --pilot {LEAST} says which runs to make first")
    seeds = min(seeds, sweep.looks[0]) if sweep.looks else seeds
    if seeds > len(sweep.seeds):
        raise ConfigError(
            f"--pilot {seeds}: {sweep.file} has {len(sweep.seeds)} seeds; give it more, or take "
            "--until-decided"
        )
    first = pilot(sweep, seeds)
    words = [word for run in first for word in ("--only", run.name)]
    words += ["--until-decided"] if until_decided else []
    say(f"{missing}; run the first {seeds} seeds of every arm, {len(first)} runs:")
    say(command_for("harness.sweep", sweep, *words, runs=runs))
    say("then this command again")


if __name__ == "__main__":
    run_command(main)
