"""Encodes prompts before training, so that no run has to and no GPU holds idle text encoders.

    python -m mixgrpo.embed PROMPTS... [--config CONFIG] [--set KEY=VALUE]... [--shard 0/4]

Running it again continues with missing prompts. The result is a store of
`mixgrpo.models.embeddings`, which runs with the same model use without further settings.
"""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixgrpo import cli
from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError, Place, RunError
from mixgrpo.files.prompts import read_prompts
from mixgrpo.models.embeddings import EmbeddingStore, embeddings_folder
from mixgrpo.models.load import load_text
from mixgrpo.settings.configfile import add_overrides, load_config
from mixgrpo.settings.layers import Layers
from mixgrpo.text.escape import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mixgrpo.models.text import PromptEncoder
    from mixgrpo.settings.config import RunConfig

LINE_EVERY_S = 15.0
"""Least seconds between two lines of progress without a terminal."""
READ_EVERY_S = 1.0
"""Least seconds between two reads of the store, whose folder may be on a slow disk."""


class Watch:
    """Shows on stderr how many of `prompts` a store has: a bar on a terminal, else lines.

    Prompts that other processes add count too. A context manager.
    """

    def __init__(self, store: EmbeddingStore, prompts: list[str]) -> None:
        self.store, self.prompts = store, prompts
        self.missing = store.missing(prompts)
        self._last_line = self._last_read = time.monotonic()
        self._size_shown = False
        self._bar: tuple[Progress, TaskID] | None = None

    @property
    def done(self) -> str:
        return f"{len(self.prompts) - len(self.missing)} of {len(self.prompts)} prompts"

    def __enter__(self) -> "Watch":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            bar = progress.Progress(
                "encoding",
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar = bar, bar.add_task("", total=len(self.prompts))
            bar.start()
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self.missing = self.store.missing(self.prompts)
        if self._bar is not None:
            self._show()
            self._bar[0].stop()

    def refresh(self) -> None:
        """Read the store and show the progress; called whenever prompts may have been added."""
        if self._size_shown and time.monotonic() - self._last_read < READ_EVERY_S:
            return
        self._last_read = time.monotonic()
        before, self.missing = self.missing, self.store.missing(self.missing)
        if not self._size_shown and len(self.missing) < len(before):
            self._size_shown = True
            added = set(before) - set(self.missing)
            self._show_size(next(p for p in before if p in added))
        if self._bar is not None:
            self._show()
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._say(self.done)

    def _show(self) -> None:
        assert self._bar is not None
        self._bar[0].update(self._bar[1], completed=len(self.prompts) - len(self.missing))

    def _say(self, text: str) -> None:
        """Print a line; on a terminal above the bar."""
        if self._bar is not None:
            from rich.text import Text

            self._bar[0].console.print(Text(visible(text)), soft_wrap=True)
        else:
            cli.say(text, sys.stderr)

    def _show_size(self, prompt: str) -> None:
        """Print the size of all embeddings, estimated from that of one prompt."""
        each = sum(t.numel() * t.element_size() for t in self.store.get([prompt]).values())
        rest, free = each * len(self.missing), shutil.disk_usage(self.store.folder).free
        self._say(
            f"{in_bytes(each)} a prompt, {in_bytes(each * len(self.prompts))} in all; "
            f"{in_bytes(free)} are free"
        )
        if rest > free:
            self._say(
                f"warning: {self.store.folder}: the disk has no room for the {in_bytes(rest)} to "
                "come; set prompts.embeddings (--out) to a folder on a larger one"
            )


def in_bytes(count: float) -> str:
    """A number of bytes with a readable unit: 4.001 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.2f} TiB"


def share_of(shard: str) -> tuple[int, int]:
    """`1/4` as (1, 4): the second of four jobs. ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not int(match[1]) < int(match[2]):
        raise ConfigError(
            f"--shard {shard}: expected I/N with I from 0 to N - 1, such as 0/4 for the first of "
            "four jobs"
        )
    return int(match[1]), int(match[2])


def configured(config: Path | None, overrides: list[str], prompts: list[Path]) -> "RunConfig":
    """The run configuration, or one of FLUX.1-dev where there is none."""
    if config is not None:
        return load_config(config, overrides)
    if not prompts:
        raise ConfigError("PROMPTS: name a file of prompts, or a run's configuration by --config")
    layers = Layers()
    layers.add(
        {
            "model": {"name": "flux"},
            "compute": {"precision": "bf16"},
            # A run needs these settings too; nothing here depends on them.
            "prompts": {"train": str(prompts[0]), "held_out": str(prompts[0])},
            "rewards": {"train": {"pickscore": 1.0}, "held_out": []},
        },
        Place("mixgrpo.embed"),
    )
    add_overrides(layers, overrides)
    return layers.validate()


def encode(text: "PromptEncoder", store: EmbeddingStore, prompts: list[str]) -> int:
    """Encode the missing ones of `prompts` into `store`. Returns the exit code: 0, or that of the
    signal that interrupted it.

    RunError for a full disk or a similar error. Prompts that were stored before stay.
    """
    started, watch = time.monotonic(), Watch(store, prompts)
    missing = text.missing(prompts)  # the negative prompt of guidance among them
    cli.say(f"{watch.done} are in {store.folder}", sys.stderr)
    if not missing:
        return 0
    try:
        with watch:
            text.prepare(missing, lambda _: watch.refresh())
    except OSError as error:
        if not error.filename:
            raise
        raise RunError(
            f"{error.filename}: {error.strerror}; what was encoded before is kept: fix this and "
            "run the same command again for the rest"
        ) from error
    except Interrupted as interrupted:
        cli.say(
            f"stopped: {watch.done} are kept in {store.folder}; the same command continues",
            sys.stderr,
        )
        return interrupted.exit_code
    seconds = time.monotonic() - started
    cli.say(f"{len(missing)} prompts encoded in {seconds:.0f} s", sys.stderr)
    return 0


def main(
    prompts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PROMPTS...",
            help="Files of prompts: text, JSON, JSON lines, CSV or Parquet; none: CONFIG's own.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's configuration: its model is used; none: FLUX.1-dev."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting on top, model.name=sd3."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of embeddings, as prompts.embeddings.")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Encode the I-th of N parts, I from 0.")
    ] = "0/1",
) -> int:
    """Encode prompts once and keep the result for every run that uses them.

    Run again, it continues. Several jobs can share the work: --shard 0/4 ... --shard 3/4.
    """
    index, count = share_of(shard)
    # Quoted, since YAML would read some folder names as numbers.
    folder = [f"prompts.embeddings={json.dumps(str(out))}"] if out else []
    overrides = [*(set_ or []), *folder]
    resolved = configured(config, overrides, prompts or [])
    configured_files = (resolved.prompts.train, resolved.prompts.held_out)
    files = prompts or [Path(file) for file in configured_files if file]
    if not files:
        raise ConfigError(f"{config}: names no file of prompts; give one, or set prompts.train")
    cli.say_warnings()
    # Each job takes its share of all prompts, not of the missing ones: these change while it runs.
    wanted = list(dict.fromkeys(p for file in files for p in read_prompts(file)))[index::count]

    import torch

    text = load_text(resolved, "cuda" if torch.cuda.is_available() else "cpu")
    store = EmbeddingStore(embeddings_folder(resolved.prompts.embeddings), text.identity)
    code = encode(text, store, wanted)
    if code == 0:
        cli.say(store.folder)
    return code


if __name__ == "__main__":
    cli.run(main)
