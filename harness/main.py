"""The command `mixgrpo`: `mixgrpo sweep FILE` is `python -m harness.sweep FILE`, and so on.

A command's module, which may import torch, is imported only when that command is used.
"""

import importlib
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
import typer.core

from mixgrpo import __version__, cli
from mixgrpo.compute.signals import end_at_once


class Command(NamedTuple):
    module: str
    about: str


COMMANDS = {
    "sweep": Command("harness.sweep", "Run what a sweep file asks for, and write its report."),
    "status": Command("harness.status", "Say what a sweep is doing: counts, progress, failures."),
    "report": Command("harness.report", "Write the report of a sweep, or of all, again."),
    "search": Command("harness.search", "Search settings with Optuna, and confirm the best."),
    "logs": Command("harness.logs", "Show what a run printed, or follow it."),
    "probe": Command(
        "harness.probe", "Measure finished runs: hybrid inference, the solver's error."
    ),
    "power": Command("harness.power", "Say how many seeds, runs and hours show an effect."),
    "cost": Command("harness.cost", "Say what the paper's experiments take in GPU hours."),
    "train": Command("mixgrpo.train", "Train one run from its configuration."),
    "generate": Command("mixgrpo.generate", "Draw images from a run."),
    "evaluate": Command("mixgrpo.evaluate", "Judge a run on held-out prompts."),
    "embed": Command("mixgrpo.embed", "Encode prompts ahead of training."),
    "to-pipeline": Command(
        "mixgrpo.to_pipeline", "Write a run's model as a pipeline of diffusers."
    ),
}


class Commands(typer.core.TyperGroup):
    """Lists the commands by name, and imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The entry of a command in the list, without importing it."""
        if cmd_name not in COMMANDS:
            return None
        return typer.core.TyperCommand(cmd_name, help=COMMANDS[cmd_name].about)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(cli.guarded(importlib.import_module(COMMANDS[str(name)].module).main))
        return name, typer.main.get_command(app), rest


def _say_version(asked: bool) -> None:
    if asked:
        cli.say(f"mixgrpo {__version__}")
        raise typer.Exit


def about(
    version: Annotated[
        bool,
        typer.Option("--version", help="Say the version.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """Train flow-matching models with MixGRPO, and find out which setting is better.

    `mixgrpo COMMAND --help` says what a command takes.
    """


def main() -> None:
    end_at_once()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS and "_MIXGRPO_COMPLETE" not in os.environ:
        module = importlib.import_module(COMMANDS[name].module)
        sys.argv[:2] = [f"mixgrpo {name}"]
        cli.run(module.main, ranks=name == "train")
    app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode=None)
    app.callback()(about)
    cli.run_app(app)


if __name__ == "__main__":
    main()
