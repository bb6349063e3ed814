"""Trains a run in its folder, from wherever it stands, until it is finished or asked to stop."""

import contextlib
import errno
import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixgrpo.catalogue.modules import imports_noted
from mixgrpo.compute.foreign import exits_are_errors
from mixgrpo.compute.phase import PhaseFile
from mixgrpo.errors import RunError, UnidentifiedError
from mixgrpo.files import jsonlines
from mixgrpo.files.manifest import checkpoints
from mixgrpo.files.records import SCORES_DIGEST
from mixgrpo.files.scores import keep_scores
from mixgrpo.runs.folder import Measured, check_unchanged, claim, is_finished, write_result
from mixgrpo.settings import usercode
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.paths import with_absolute_paths
from mixgrpo.settings.usercode import Modules
from mixgrpo.text.words import duration

if TYPE_CHECKING:
    from mixgrpo.compute.ranks import Ranks
    from mixgrpo.training.trackers import Trackers


log = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped"]

_LOG_EVERY_S = 5.0
"""Seconds between two lines of the log about progress, at least."""
_PACE_OVER = 10
"""Iterations whose mean time gives the time that is left."""

_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ESTALE,
    errno.ENOTEMPTY,
}


def run(
    config: RunConfig,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: "Ranks | None" = None,
    code: dict[str, Modules] | None = None,
) -> Outcome:
    """Begin or continue the run in `folder` until it is finished or `should_stop()`.

    `should_stop` is asked after every iteration; a stopped run has a checkpoint of that iteration.
    What it raises ends the run before it writes anything more.
    `code` is what `user_code` returned before the user's code was imported, where it already is.
    A finished run returns at once. All `ranks` of a run must call it; the first of them writes.
    ConfigError for what the configuration asks in vain, RunError for what failed; a folder that
    holds another configuration's run is refused.
    """
    # Code that a run calls may change the working directory.
    folder, home, given, config = folder.absolute(), Path.cwd(), config, with_absolute_paths(config)
    try:
        if ranks is None or ranks.first:
            # Before anything slow: what is removed from now on is not made again.
            folder.mkdir(parents=True, exist_ok=True)
        from mixgrpo.compute.ranks import join

        ranks = ranks or join()
        if ranks.first:
            claim(given, folder)
            check_unchanged(given, folder, code)
        if ranks.any(ranks.first and is_finished(config, folder)):
            if ranks.first:
                log.info("%s: finished before", folder)
            return "finished"
        phase = PhaseFile(folder if ranks.first else None)
        try:
            with exits_are_errors():
                return _Run(config, folder, ranks, phase, given, home).go(should_stop)
        finally:
            phase.close()
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; the run is whole up to its newest "
            "checkpoint: fix this and run the same command again to continue"
        ) from error
    except RuntimeError as error:
        if ranks is None or ranks.size == 1 or "Connection closed by peer" not in str(error):
            raise
        raise RunError("another process of this run has failed; see its message") from error


class _Run:
    """The files of a run, and what happens in which order."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        ranks: "Ranks",
        phase: PhaseFile,
        given: RunConfig,
        home: Path,
    ) -> None:
        """`given`: the configuration whose relative paths begin in `home`, to be shown."""
        import torch

        from mixgrpo.training.health import Health
        from mixgrpo.training.trainer import Trainer

        self.config, self.folder, self.ranks = config, folder, ranks
        self.phase = phase
        self.given, self.home = given, home
        self.user_code, self.unseen = usercode.all_values(config), set[str]()
        phase.enter("loading")
        self.trainer = Trainer(config, ranks)
        if ranks.first:
            check_unchanged(config, folder)
            self._warn_of_unseen()
        self.made_on = {
            "device": torch.device(ranks.device).type,
            "threads": torch.get_num_threads(),
            **({"processes": ranks.size} if ranks.size > 1 else {}),
        }
        self.measured = Measured(config, folder)
        self.checkpoints = folder / "checkpoints"
        self.health = Health(config)
        self.spoke = float("-inf")
        self.paces: deque[float] = deque(maxlen=_PACE_OVER)
        self.trackers: Trackers | None = None

    def go(self, should_stop: Callable[[], bool]) -> Outcome:
        from mixgrpo.training.trackers import open_trackers

        done = self._resume()
        if self.ranks.first:
            with contextlib.chdir(self.home):
                self.trackers = open_trackers(self.given, self.folder, self.folder.name)
        try:
            return self._go(done, should_stop)
        finally:
            if self.trackers is not None:
                self.trackers.close()

    def _go(self, done: int, should_stop: Callable[[], bool]) -> Outcome:
        saved = done or None  # what was resumed from need not be written again
        # Asked of the first rank, so that all do the same whatever they see of its disk.
        judged = self.ranks.any(self.ranks.first and done in self.measured.judged())
        while True:
            stop = self.ranks.any(should_stop())
            # A grace period may be shorter than an evaluation; the next attempt makes it.
            if self.measured.due(done) and not judged and not stop:
                self._evaluate(done, should_stop)
                judged = True
                stop = self.ranks.any(should_stop())  # it may have taken long
            if done == self.config.iterations and judged:
                self._finish()
                return "finished"
            if stop:
                if saved != done:
                    self._save(done)
                return "stopped"
            self.phase.enter("training", done / self.config.iterations)
            with imports_noted(self.user_code):
                line = self.trainer.iterate(done)
            if self.ranks.first:
                should_stop()  # raises where the folder is not this run's any more, before a write
                self._say(line)
                jsonlines.append(self.measured.metrics, line)
                self._tell(self.health.iteration(line))
                if self.trackers is not None:
                    self.trackers.metrics(line)
            done, judged = done + 1, False
            if self._is_usual(done) or done in self.config.output.keep:
                self._save(done)
                saved = done

    def _resume(self) -> int:
        """Take over the newest whole checkpoint; drop what was written after it."""
        from mixgrpo.files import checkpoint

        # All ranks go by what the first one reads.
        whole = self.ranks.gather_objects(self._whole() if self.ranks.first else 0)[0]
        newest = checkpoint.load_newest(self.checkpoints, whole)
        done = 0
        if newest is not None:
            done = newest.iteration
            self.trainer.state.load_tensors(newest.tensors)
            if self.ranks.first:
                log.info("%s: goes on after %d iterations", self.folder, done)
            if newest.made_on != self.made_on and self.ranks.first:
                warnings.warn(
                    f"{self.folder}: began with {_in_words(newest.made_on)}, goes on with "
                    f"{_in_words(self.made_on)}: prompts, noise, windows and state are exactly "
                    "those it would have had; sums are rounded otherwise, so it ends equal but "
                    "not to the byte",
                    stacklevel=2,
                )
        if self.ranks.first:
            self._remember(*self.measured.keep(done))
        self.ranks.wait()
        return done

    def _whole(self) -> int:
        """The iterations whose lines are whole, with a warning where a checkpoint has more."""
        whole = self.measured.unchanged()
        newest = max((int(p.name) for p in checkpoints(self.checkpoints)), default=0)
        if newest > whole:
            warnings.warn(
                f"{self.folder}: metrics.jsonl and eval.jsonl have all lines, as they were "
                f"written and with their scores, of the first {whole} iterations only, not of "
                f"{newest}; going back to a checkpoint up to there, or to the beginning, to make "
                "the others again",
                stacklevel=2,
            )
        return whole

    def _remember(self, lines: list[dict[str, Any]], evals: list[dict[str, Any]]) -> None:
        """Show `health` the lines of both files in the order in which they were written."""
        waiting = list(evals)
        for line in lines:
            while waiting and waiting[0]["iteration"] <= line["iteration"]:
                self.health.evaluation(waiting.pop(0))
            self.health.iteration(line)
        for last in waiting:
            self.health.evaluation(last)

    def _say(self, line: dict[str, Any]) -> None:
        """Log how far the run is, every few seconds."""
        self.paces.append(line["seconds_total"])
        if time.monotonic() - self.spoke < _LOG_EVERY_S:
            return
        self.spoke = time.monotonic()
        rewards = "  ".join(
            f"{name} {line[f'reward_{name}_mean']:.3f}" for name in self.config.rewards.train
        )
        done, total = line["iteration"] + 1, self.config.iterations
        log.info(
            "%s: %d of %d iterations, %.2f s each, about %s left; rollouts %s",
            self.folder,
            done,
            total,
            line["seconds_total"],
            duration((total - done) * sum(self.paces) / len(self.paces)),
            rewards,
        )

    def _warn_of_unseen(self) -> None:
        """Warn, once, of each import that the run's name does not know."""
        texts = usercode.undetected_imports(self.config)
        self._tell([text for text in texts if text not in self.unseen])
        self.unseen |= set(texts)

    def _tell(self, texts: list[str]) -> None:
        for text in texts:
            warnings.warn(text, stacklevel=2)

    def _is_usual(self, done: int) -> bool:
        """Whether a run makes a checkpoint there whatever else it keeps."""
        return done % self.config.output.checkpoint_every == 0 or done == self.config.iterations

    def _save(self, done: int) -> None:
        from mixgrpo.files import checkpoint

        self.phase.enter("saving")
        tensors = self.trainer.state.tensors()
        if self.ranks.first:
            # What a checkpoint vouches for must be on disk before the checkpoint is.
            for file in (self.measured.metrics, self.measured.evals):
                if file.exists():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            digests = self.measured.digests(done)
            checkpoint.save(self.checkpoints, done, tensors, self.made_on, digests)
            output = self.config.output
            besides = [m for m in output.keep if not self._is_usual(m)]
            checkpoint.prune(self.checkpoints, output.checkpoints_kept, done, output.keep, besides)

    def _evaluate(self, done: int, should_stop: Callable[[], bool]) -> None:
        from mixgrpo.training.metrics import evaluation_metrics
        from mixgrpo.training.samples import keep_samples, shown_prompts

        begin = time.perf_counter()
        shown: list[str] = []
        if self.ranks.first:
            shown = shown_prompts(self.folder, self.trainer.held_out, self.config.output.samples)
        with imports_noted(self.user_code):
            judged = self.trainer.evaluate(
                self.ranks.gather_objects(shown)[0],
                lambda part: self.phase.enter("evaluating", part),
                self.config.evaluated_images(done),
            )
        if not self.ranks.first:
            return
        with contextlib.suppress(UnidentifiedError):  # what was there in the beginning counts
            self._warn_of_unseen()
        line: dict[str, Any] = evaluation_metrics(done, judged, time.perf_counter() - begin)
        pictures = [judged.images[prompt][0] for prompt in shown]
        should_stop()  # raises where the folder is not this run's any more, before a write
        keep_samples(self.folder, done, pictures)
        # Before the line, which vouches for it: an evaluation that has its line is not made again.
        line[SCORES_DIGEST] = keep_scores(self.folder, done, judged.table(self.config.seed))
        jsonlines.append(self.measured.evals, line)
        means = "  ".join(f"{k} {float(v.mean()):.3f}" for k, v in judged.scores.items())
        log.info("%s: %d of %d iterations  %s", self.folder, done, self.config.iterations, means)
        self._tell(self.health.evaluation(line))
        if self.trackers is not None:
            self.trackers.samples(done, shown, pictures)
            self.trackers.evaluation(line)

    def _finish(self) -> None:
        average = self.trainer.state.averages() if self.config.output.export else None
        if not self.ranks.first:
            return
        if average is not None:
            from mixgrpo.models.export import export_weights

            network = self.trainer.policy.network
            export_weights(network, average, self.config.model, self.folder / "weights")
        write_result(self.config, self.folder, [r.name for r in self.trainer.all_rewards])


def _in_words(made_on: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in made_on.items())
