"""One run from its configuration to its result, in a folder that survives anything.

    python -m mixgrpo.train CONFIG --out DIR [--set KEY=VALUE]...

Run again, a folder continues from its newest whole checkpoint and ends with the same bytes in its
metrics (timings and memory apart) and weights as a run that was never interrupted, on the same
device with the same number of threads.
"""

import contextlib
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixgrpo import cli
from mixgrpo.compute import signals
from mixgrpo.errors import ConfigError, RunError, UnidentifiedError
from mixgrpo.files import lease
from mixgrpo.runs.folder import OWNER
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import add_overrides, load_layers
from mixgrpo.settings.paths import check_folder, removed_if_refused
from mixgrpo.settings.trust import check as check_trust
from mixgrpo.settings.usercode import Modules, user_code
from mixgrpo.training import preflight
from mixgrpo.training.run import run

if TYPE_CHECKING:
    pass


def check_place(out: Path) -> None:
    """ConfigError where `out` is no place for a run: a file, or a folder of other things."""
    check_folder("--out", out)
    if out.exists() and not (out / "config.yaml").exists():
        others = sorted(p.name for p in out.iterdir() if p.name != OWNER)
        if others:
            raise ConfigError(
                f"--out {out}: holds no run but other things ({others[0]}); name another folder"
            )


def main(
    config: Annotated[Path, typer.Argument(help="Run configuration, a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; an unfinished one continues.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting on top, window.interval=25."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it takes, parameters and memory; load nothing."),
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="With --dry-run: the number of GPUs, one process on each.")
    ] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="With --dry-run: as shards of FSDP2, not copies.")
    ] = False,
    trust: cli.TrustOption = False,
) -> int:
    """Train one run. Run again, it continues; finished, it says so.

    On several GPUs or machines: accelerate launch ... -m mixgrpo.train CONFIG --out DIR
    """
    layers = load_layers(config)
    add_overrides(layers, set_ or [])
    resolved = layers.validate()
    check_trust(resolved, layers.place, trust)
    if not dry_run and (processes > 1 or sharded):
        raise ConfigError(
            "--processes and --sharded are of --dry-run; accelerate launch starts processes "
            "(docs/training.md)"
        )
    if out is None and not dry_run:
        raise ConfigError("--out: name the run's folder")
    code = None
    with contextlib.suppress(UnidentifiedError):  # which the next line says better
        code = user_code(resolved)
    preflight.check(resolved, layers)
    if out is None or dry_run:
        return _dry_run(resolved, processes, sharded)
    preflight.warn_of_memory(resolved)
    out, begun = out.absolute(), ("metrics.jsonl", "eval.jsonl", "checkpoints")
    with removed_if_refused(out, begun), signals.noted() as stopping:
        return _train(resolved, out, stopping, code)


def _train(
    config: RunConfig, out: Path, stopping: list[int], code: dict[str, Modules] | None
) -> int:
    """The run of the command; signals that are noted in `stopping` end it after a checkpoint."""
    from mixgrpo.compute import ranks

    own = ranks.join()
    level = logging.INFO if own.first else logging.WARNING
    cli.say_log(level)
    cli.say_warnings()
    if own.first:
        check_place(out)
        out.mkdir(parents=True, exist_ok=True)
    owner = lease.acquire(out / OWNER) if own.first else None
    if own.first and owner is None:
        raise RunError(f"{out}: {lease.holder(out / OWNER)} is training in this folder")

    def should_stop() -> bool:
        if owner is not None:
            owner.check()
        return bool(stopping)

    try:
        outcome = run(config, out, should_stop, own, code)
    except (OSError, RunError):
        if owner is not None:
            owner.check()  # what failed may be that the folder is gone
        raise
    finally:
        if owner is not None:
            owner.release()
        ranks.leave()
    if outcome == "stopped":
        if own.first:
            cli.say(f"{out}: stopped with a checkpoint; the same command continues", sys.stderr)
        # Another rank may have heard the signal.
        return signals.exit_code(stopping[0] if stopping else signal.SIGINT)
    if own.first:
        cli.say(out / "result.json")
    return 0


def _dry_run(config: RunConfig, processes: int, sharded: bool) -> int:
    from mixgrpo.compute.ranks import Ranks
    from mixgrpo.forecast.estimate import describe

    cli.say_warnings()
    cli.say(describe(config, Ranks(size=processes, sharded=sharded)))
    return 0


if __name__ == "__main__":
    cli.run(main, ranks=True)
