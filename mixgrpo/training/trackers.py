"""Weights & Biases and TensorBoard beside a run's own files, each by option.

metrics.jsonl and eval.jsonl are the truth; a tracker shows them elsewhere. One that fails warns
once and is off from then on: it never stops a run. Beside the metrics and the configuration they
get nothing: no command, environment, code or user.

The classes of `accelerate.tracking` are not used: in a run of one process they raise, because
accelerate's logger asks for a PartialState, and that raises in turn where a site sets LOCAL_RANK in
every job. They know no captions and no second writer, and what `init` is given would stay here.
"""

import hashlib
import importlib
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mixgrpo.compute.signals import Interrupted
from mixgrpo.errors import ConfigError
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.identity import config_hash
from mixgrpo.text.escape import markdown_block, one_line, shortened

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

_LONGEST_TAG, _LONGEST_GROUP = 64, 128
"""Characters, as Weights & Biases has it."""

PATIENCE = 30.0
"""Seconds that Weights & Biases may delay a run, at its beginning and at its end."""

_NOTHING_PRIVATE: dict[str, Any] = {
    "console": "off",
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "host": "",
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
}
"""Settings that keep command, environment, code, git, host and user out of what is recorded.

They overlap, on purpose: the library does not say which of them keeps out what.
"""

Part = Literal["train", "eval"]
"""Both files of a run have keys of the same name, such as the mean of a reward."""


class Tracker(Protocol):
    def log(self, part: Part, iteration: int, values: dict[str, float]) -> None: ...
    def show(self, iteration: int, prompts: Sequence[str], images: "Sequence[Tensor]") -> None: ...
    def close(self) -> None: ...


class Trackers:
    """The trackers of one run by name; what goes wrong in one is a warning, never an error."""

    def __init__(self, folder: Path, opened: dict[str, Tracker]) -> None:
        self._folder, self._opened = folder, opened

    def metrics(self, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        self._log("train", line)

    def evaluation(self, line: dict[str, Any]) -> None:
        """Show one line of eval.jsonl."""
        self._log("eval", line)

    def samples(self, iteration: int, prompts: Sequence[str], images: "Sequence[Tensor]") -> None:
        """Show the pictures [3, H, W] in [0, 1] of an evaluation with their prompts. Before its
        line."""
        self._each(lambda tracker: tracker.show(iteration, prompts, images))

    def close(self) -> None:
        """Write out what is pending; the trackers are gone after that."""
        self._each(lambda tracker: tracker.close())
        self._opened.clear()

    def _log(self, part: Part, line: dict[str, Any]) -> None:
        values = {
            key: float(value)
            for key, value in line.items()
            if key != "iteration" and isinstance(value, int | float)
        }
        self._each(lambda tracker: tracker.log(part, line["iteration"], values))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._opened.items()):
            with _harmless(name, self._folder, self._opened):
                act(tracker)


def open_trackers(config: RunConfig, folder: Path, run_name: str) -> Trackers:
    """The trackers of `output.trackers` for the run in `folder`, below which they write.

    ConfigError where one is not installed. Nothing is imported that is not asked for.
    """
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(config.output.trackers):
        with _harmless(name, folder, opened):
            try:
                opened[name] = (
                    _WeightsAndBiases(config, folder, run_name)
                    if name == "wandb"
                    else _TensorBoard(folder)
                )
            except ImportError as error:
                raise _missing(name, error) from error
    return Trackers(folder, opened)


@dataclass(frozen=True)
class SweepRun:
    """Which run of a sweep it is."""

    sweep: str
    arm: str
    seed: int


def sweep_run(folder: Path) -> SweepRun | None:
    """By the names of the run's folder and of the folder around it; None outside a sweep."""
    match = re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]{8}", folder.name)
    return SweepRun(folder.absolute().parent.name, match[1], int(match[2])) if match else None


def check_trackers(names: Iterable[str]) -> None:
    """ConfigError for a tracker that is not installed."""
    for name in names:
        module = "wandb.sdk" if name == "wandb" else "torch.utils.tensorboard"
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise _missing(name, error) from error


def _missing(name: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"output.trackers: {name} cannot be imported ({error}); pip install 'mixgrpo[trackers]', "
        "or leave it out"
    )


def run_id(config: RunConfig, run_name: str) -> str:
    """The id at Weights & Biases: the same for a run that is continued, another for any other."""
    return hashlib.sha256(f"{run_name} {config_hash(config)}".encode()).hexdigest()[:16]


@contextmanager
def _harmless(name: str, folder: Path, opened: dict[str, Tracker]) -> Iterator[None]:
    """Warn of what a tracker raises inside, and remove it from `opened`."""
    try:
        yield
    except (ConfigError, Interrupted):
        raise
    except BaseException as error:  # sys.exit, too
        opened.pop(name, None)
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"{folder}: {name} failed ({type(error).__name__}: {reason}) and is off from here on; "
            "the run goes on, and metrics.jsonl and eval.jsonl have everything",
            stacklevel=2,
        )


class _WeightsAndBiases:
    """One run at Weights & Biases, under an id by which a resumed run continues it."""

    def __init__(self, config: RunConfig, folder: Path, run_name: str) -> None:
        run = sweep_run(folder)
        # By name: a mere folder called wandb in the working directory can be imported, too.
        from wandb import Settings, init, setup
        from wandb.sdk.lib import wbauth

        user = setup().settings
        # Asked of the library, which knows a server by several names, and asked first, because
        # `init` without a key asks the user.
        keyless = user.mode not in ("offline", "dryrun", "disabled") and not (
            wbauth.authenticate_session(
                host=user.base_url, source="mixgrpo", prompt=False, update_session=False
            )
        )
        self._run = init(
            project=config.output.project,
            name=run_name,
            group=shortened(run.sweep, _LONGEST_GROUP) if run else None,
            tags=[shortened(f"arm {run.arm}", _LONGEST_TAG), f"seed {run.seed}"] if run else None,
            id=run_id(config, run_name),
            resume="allow",
            dir=folder,
            config=config.model_dump(mode="json")
            | ({"sweep": run.sweep, "arm": run.arm} if run else {}),
            mode="offline" if keyless else None,
            settings=Settings(
                # A process may hold several runs, each with its own object.
                reinit="create_new",
                use_dot_wandb=False,
                symlink=False,
                silent=True,
                init_timeout=PATIENCE,
                finish_timeout=PATIENCE,
                # The library's process dies with a killed run, and what it holds in memory is lost.
                x_transaction_log_flush_interval=1.0,
                **_NOTHING_PRIVATE,
            ),
        )
        self._run.define_metric("*", step_metric="iteration")
        if keyless:
            log.info(
                "%s: no API key for wandb, so it is kept offline; upload with wandb sync %s",
                folder,
                folder / "wandb" / "offline-run-*",
            )

    def log(self, part: Part, iteration: int, values: dict[str, float]) -> None:
        named = {f"{part}/{key}": value for key, value in values.items()}
        # A step that a resumed run repeats is ignored there: it has the same numbers. The
        # evaluation before an iteration is of the same step, which the iteration completes.
        self._run.log({**named, "iteration": iteration}, step=iteration, commit=part == "train")

    def show(self, iteration: int, prompts: Sequence[str], images: "Sequence[Tensor]") -> None:
        from wandb import Image

        shown = [
            Image(_pixels(image), caption=one_line(prompt))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        self._run.log({"eval/samples": shown, "iteration": iteration}, step=iteration, commit=False)

    def close(self) -> None:
        self._run.finish()


_WRITERS = "_AsyncWriterThread"
"""TensorBoard's threads: what ends one is raised again by the next flush, which warns of it."""


def _hush_writers() -> None:
    """Print no traceback of a thread of TensorBoard beside the warning."""
    before = threading.excepthook

    def hushed(args: threading.ExceptHookArgs) -> None:
        if type(args.thread).__name__ != _WRITERS:
            before(args)

    if getattr(before, "__name__", "") != hushed.__name__:  # once a process
        threading.excepthook = hushed


class _TensorBoard:
    """A folder for each part, so that one chart shows training and evaluation of the same name."""

    def __init__(self, folder: Path) -> None:
        import torch.utils.tensorboard as tensorboard

        _hush_writers()
        self._library = tensorboard
        self._folder = folder / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._writers: dict[Part, SummaryWriter] = {}

    def _writer(self, part: Part, iteration: int) -> "SummaryWriter":
        if part not in self._writers:
            # What an interrupted process wrote from here on is about to be written again.
            self._writers[part] = self._library.SummaryWriter(
                str(self._folder / part), purge_step=iteration
            )
        return self._writers[part]

    def log(self, part: Part, iteration: int, values: dict[str, float]) -> None:
        writer = self._writer(part, iteration)
        for key, value in values.items():
            writer.add_scalar(key, value, iteration)
        # As metrics.jsonl is whole after every line, so that a killed run loses nothing.
        writer.flush()

    def show(self, iteration: int, prompts: Sequence[str], images: "Sequence[Tensor]") -> None:
        writer = self._writer("eval", iteration)
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            writer.add_image(f"samples/{number}", _pixels(image), iteration, dataformats="HWC")
            # Shown as Markdown.
            writer.add_text(f"samples/{number}", markdown_block(prompt), iteration)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _pixels(image: "Tensor") -> "np.ndarray":
    """An image [3, H, W] in [0, 1] as bytes [H, W, 3]."""
    pixels: np.ndarray = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels
