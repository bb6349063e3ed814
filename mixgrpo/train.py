"""One run from its configuration to its result, in a folder that survives anything.

    python -m mixgrpo.train CONFIG --out DIR [--set KEY=VALUE]...

Run again, a folder continues from its newest whole checkpoint and ends with the same bytes in its
metrics (timings and memory apart) and weights as a run that was never interrupted, on the same
device with the same number of threads.
"""

import errno
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixgrpo import cli, jsonlines, lock
from mixgrpo.atomic import write_json, write_text
from mixgrpo.config import SCHEMA_VERSION, RunConfig, config_hash, differences
from mixgrpo.configfile import dump_config, load_config
from mixgrpo.errors import ConfigError, RunError

if TYPE_CHECKING:
    from mixgrpo.evaluate import Evaluation
    from mixgrpo.ranks import Ranks
    from mixgrpo.trackers import Trackers

log = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped"]

OWNER_LOCK = "owner.lock"
"""The file in a run's folder that its owner, one process at a time, holds locked."""

_SILENCE_S = 30.0
"""A run says how far it is at least so often."""

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
) -> Outcome:
    """Begin or continue the run in `folder` until it is finished or `should_stop()`.

    `should_stop` is asked after every iteration; a stopped run has a checkpoint of that iteration.
    A finished run returns at once. All `ranks` of a run must call it; the first of them writes.
    ConfigError for what the configuration asks in vain, RunError for what failed; a folder that
    holds another configuration's run is refused.
    """
    from mixgrpo.ranks import join

    ranks = ranks or join()
    try:
        if ranks.first:
            folder.mkdir(parents=True, exist_ok=True)
            claim(config, folder)
        if ranks.any(ranks.first and (folder / "result.json").exists()):
            return "finished"
        return _Run(config, folder, ranks).go(should_stop)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise RunError(
            f"{error.filename or folder}: {error.strerror}; the run is whole up to its newest "
            "checkpoint: mend this and run the same command again to continue"
        ) from error
    except RuntimeError as error:
        if ranks.size == 1 or "Connection closed by peer" not in str(error):
            raise
        raise RunError("another process of this run has failed; see what it said") from error


def claim(config: RunConfig, folder: Path) -> None:
    """Write config.yaml, or check that the one there is of the same run and version."""
    file = folder / "config.yaml"
    header = f"# schema {SCHEMA_VERSION}, run {config_hash(config)}\n"
    if not file.exists():
        write_text(file, header + dump_config(config))
        return
    found = file.read_text().partition("\n")[0] + "\n"
    if found == header:
        return
    if found.startswith(f"# schema {SCHEMA_VERSION}, run "):
        if not any((folder / name).exists() for name in ("metrics.jsonl", "eval.jsonl")):
            write_text(file, header + dump_config(config))  # that run never began
            return
        raise ConfigError(
            f"{file}: is of another run ({_changes(file, config)}); choose another folder, or "
            "remove this one"
        )
    raise ConfigError(
        f"{file}: was written by another version (it begins {found.strip()!r}, this one writes "
        f"{header.strip()!r}); finish the run with that version, or remove its folder"
    )


def _changes(file: Path, config: RunConfig) -> str:
    """What another configuration's file has otherwise, as `iterations: 60, not 80`."""
    try:
        before, now = differences(load_config(file)), differences(config)
    except ConfigError:
        return "its configuration cannot be read"
    keys = [k for k in (*before, *now) if before.get(k) != now.get(k)]
    default = RunConfig().model_dump(mode="json")

    def value(settings: dict[str, Any], key: str) -> Any:
        found: Any = default
        for part in key.split("."):
            found = found[part]
        return settings.get(key, found)

    texts = [f"{k}: {value(before, k)}, not {value(now, k)}" for k in dict.fromkeys(keys)]
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return "; ".join(texts[:3]) + more if texts else "its model or rewards have other weights"


class _Run:
    """The folder's side of a run: files, checkpoints, the order of things."""

    def __init__(self, config: RunConfig, folder: Path, ranks: "Ranks") -> None:
        import torch

        from mixgrpo.health import Health
        from mixgrpo.trainer import Trainer

        self.config, self.folder, self.ranks = config, folder, ranks
        self.trainer = Trainer(config, ranks)
        self.made_on = {
            "device": torch.device(ranks.device).type,
            "threads": torch.get_num_threads(),
            **({"processes": ranks.size} if ranks.size > 1 else {}),
        }
        self.metrics = folder / "metrics.jsonl"
        self.evals = folder / "eval.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.health = Health(config)
        self.spoke = time.monotonic()
        self.trackers: Trackers | None = None

    def go(self, should_stop: Callable[[], bool]) -> Outcome:
        from mixgrpo.trackers import open_trackers

        done = self._resume()
        if self.ranks.first:
            self.trackers = open_trackers(self.config, self.folder, self.folder.name)
        try:
            return self._go(done, should_stop)
        finally:
            if self.trackers is not None:
                self.trackers.close()

    def _go(self, done: int, should_stop: Callable[[], bool]) -> Outcome:
        saved = done or None  # what was resumed from need not be written again
        # Asked of the first rank, so that all do the same whatever they see of its disk.
        judged = self.ranks.any(self.ranks.first and done in self._evaluated())
        while True:
            stop = self.ranks.any(should_stop())
            # A grace period may be shorter than an evaluation; the next attempt makes it good.
            if self._due(done) and not judged and not stop:
                self._evaluate(done)
                judged = True
            if done == self.config.iterations and judged:
                self._finish()
                return "finished"
            if stop:
                if saved != done:
                    self._save(done)
                return "stopped"
            line = self.trainer.iterate(done)
            if self.ranks.first:
                self._say(line)
                jsonlines.append(self.metrics, line)
                self._tell(self.health.iteration(line))
                if self.trackers is not None:
                    self.trackers.metrics(line)
            done, judged = done + 1, False
            every = self.config.output.checkpoint_every
            if done % every == 0 or done == self.config.iterations:
                self._save(done)
                saved = done

    def _resume(self) -> int:
        """Take over the newest whole checkpoint; drop what was written after it."""
        from mixgrpo import checkpoint

        found = checkpoint.load_newest(self.checkpoints)
        done = 0
        if found is not None:
            done = found.iteration
            self.trainer.load_tensors(found.tensors)
            if self.ranks.first:
                log.info("%s: goes on after %d iterations", self.folder, done)
            if found.made_on != self.made_on and self.ranks.first:
                warnings.warn(
                    f"{self.folder}: began with {_in_words(found.made_on)}, goes on with "
                    f"{_in_words(self.made_on)}: prompts, noise, windows and state are exactly "
                    "those it would have had; sums are rounded otherwise, so it ends equal but "
                    "not to the byte",
                    stacklevel=2,
                )
        if self.ranks.first:
            self._mend_files(done)
        self.ranks.wait()
        return done

    def _mend_files(self, done: int) -> None:
        """Leave the lines of `done` iterations, and let `health` remember them."""
        jsonlines.keep_lines(self.metrics, lambda line: line["iteration"] < done)
        jsonlines.keep_lines(self.evals, lambda line: line["iteration"] <= done)
        lines = jsonlines.read_lines(self.metrics)
        if len(lines) != done:
            raise RunError(
                f"{self.metrics}: {len(lines)} lines for {done} finished iterations; the file was "
                "changed from outside: remove the run's folder to begin again"
            )
        # One evaluation may be missing: that of a run killed between its checkpoint and it.
        evals = jsonlines.read_lines(self.evals)
        judged = [line["iteration"] for line in evals]
        expected = [m for m in range(done + 1) if self._due(m)]
        if judged not in (expected, [m for m in expected if m < done]):
            raise RunError(
                f"{self.evals}: has the evaluations of {judged}, not of {expected}; the file was "
                "changed from outside: remove the run's folder to begin again"
            )
        waiting = list(evals)
        for line in lines:
            while waiting and waiting[0]["iteration"] <= line["iteration"]:
                self.health.evaluation(waiting.pop(0))
            self.health.iteration(line)
        for last in waiting:
            self.health.evaluation(last)

    def _say(self, line: dict[str, Any]) -> None:
        """A sign of life, now and then."""
        if time.monotonic() - self.spoke < _SILENCE_S:
            return
        self.spoke = time.monotonic()
        rewards = "  ".join(
            f"{name} {line[f'reward_{name}_mean']:.3f}" for name in self.config.rewards.train
        )
        log.info(
            "%s: %d of %d iterations, %.2f s each; rollouts %s",
            self.folder,
            line["iteration"] + 1,
            self.config.iterations,
            line["seconds_total"],
            rewards,
        )

    def _tell(self, texts: list[str]) -> None:
        for text in texts:
            warnings.warn(text, stacklevel=2)

    def _due(self, done: int) -> bool:
        """Whether an evaluation belongs after `done` iterations."""
        return done % self.config.evaluation.every == 0 or done == self.config.iterations

    def _evaluated(self) -> set[int]:
        return {line["iteration"] for line in jsonlines.read_lines(self.evals)}

    def _save(self, done: int) -> None:
        from mixgrpo import checkpoint

        tensors = self.trainer.tensors()
        if self.ranks.first:
            # What a checkpoint vouches for must be on disk before the checkpoint is.
            for file in (self.metrics, self.evals):
                if file.exists():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            checkpoint.save(self.checkpoints, done, tensors, self.made_on)
            checkpoint.prune(self.checkpoints, self.config.output.checkpoints_kept, done)

    def _evaluate(self, done: int) -> None:
        from mixgrpo.distributions import diversity

        begin = time.perf_counter()
        judged = self.trainer.evaluate()
        if not self.ranks.first:
            return
        line: dict[str, Any] = {"iteration": done}
        for name, scores in judged.scores.items():
            line[f"reward_{name}_mean"] = float(scores.mean())
            # One image alone has no spread; NaN would not be JSON.
            line[f"reward_{name}_std"] = float(scores.std()) if scores.numel() > 1 else 0.0
        if judged.images.shape[1] > 1:
            line["diversity"] = float(diversity(judged.images).mean())
        line["prompts"] = len(judged.prompts)
        line["images"] = judged.images.shape[0] * judged.images.shape[1]
        line["seconds_total"] = time.perf_counter() - begin
        self._keep_samples(done, judged)
        jsonlines.append(self.evals, line)
        means = "  ".join(f"{k} {float(v.mean()):.3f}" for k, v in judged.scores.items())
        log.info("%s: %d of %d iterations  %s", self.folder, done, self.config.iterations, means)
        self._tell(self.health.evaluation(line))
        if self.trackers is not None:
            self.trackers.evaluation(line)

    def _keep_samples(self, done: int, judged: "Evaluation") -> None:
        from PIL import Image

        place = self.folder / "samples" / f"{done:06d}"
        place.mkdir(parents=True, exist_ok=True)
        listing = place.parent / "prompts.json"
        if listing.exists():  # a picture's number means the same prompt in every evaluation
            chosen = [judged.prompts.index(p) for p in json.loads(listing.read_text())]
        else:  # spread over the prompts, whose neighbours are alike
            count = min(self.config.output.samples, len(judged.prompts))
            chosen = [i * len(judged.prompts) // count for i in range(count)]
            write_json(listing, [judged.prompts[i] for i in chosen])
        for k, i in enumerate(chosen):
            pixels = (judged.images[i, 0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            Image.fromarray(pixels).save(place / f"{k}.png")

    def _finish(self) -> None:
        average = self.trainer.averages() if self.config.output.export else None
        if not self.ranks.first:
            return
        if average is not None:
            from mixgrpo.export import export_weights

            network = self.trainer.policy.network
            export_weights(network, average, self.config.model, self.folder / "weights")
        lines, evals = jsonlines.read_lines(self.metrics), jsonlines.read_lines(self.evals)
        names = [r.name for r in self.trainer.all_rewards]

        def judged(line: dict[str, Any]) -> dict[str, float]:
            return {name: line[f"reward_{name}_mean"] for name in names}

        def total(key: str) -> Any:
            return sum(line[key] for line in lines)

        write_json(
            self.folder / "result.json",
            {
                "schema": SCHEMA_VERSION,
                "hash": config_hash(self.config),
                "seed": self.config.seed,
                "iterations": len(lines),
                "before": judged(evals[0]),
                "after": judged(evals[-1]),
                "seconds_total": total("seconds_total"),
                "evaluations_computed": total("evaluations_computed"),
                "backward_computed": total("backward_computed"),
                "nfe_rollout": total("nfe_rollout") / len(lines),
                "nfe_train": total("nfe_train") / len(lines),
            },
        )


def _in_words(made_on: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in made_on.items())


def check_place(out: Path) -> None:
    """ConfigError where `out` is no place for a run: a file, or a folder of other things."""
    if any(p.exists() and not p.is_dir() for p in (out, *out.parents)):
        raise ConfigError(f"--out {out}: is not a folder and cannot become one; name another")
    if out.exists() and not (out / "config.yaml").exists():
        others = sorted(p.name for p in out.iterdir() if p.name != OWNER_LOCK)
        if others:
            raise ConfigError(
                f"--out {out}: holds no run but other things ({others[0]}); name another folder"
            )


def main(
    config: Annotated[Path, typer.Argument(help="Run configuration, a YAML file.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an unfinished one continues.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting on top, window.interval=25."),
    ] = None,
) -> int:
    """Train one run. Run again, it continues; finished, it says so.

    On several GPUs or machines: accelerate launch ... -m mixgrpo.train CONFIG --out DIR
    """
    resolved = load_config(config, set_)
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: stopping.append(n))

    from mixgrpo import ranks

    own = ranks.join()
    level = logging.INFO if own.first else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    if own.first:
        check_place(out)
    before = (out / "result.json").exists()
    owner = lock.acquire(out / OWNER_LOCK) if own.first else None
    if own.first and owner is None:
        raise RunError(f"{out}: {lock.holder(out / OWNER_LOCK)} is training in this folder")
    try:
        outcome = run(resolved, out, lambda: bool(stopping), own)
    finally:
        if owner is not None:
            owner.release()
        ranks.leave()
    if outcome == "stopped":
        if own.first:
            print(f"{out}: stopped with a checkpoint; the same command continues", file=sys.stderr)
        return 130
    if own.first:
        if before:
            log.info("%s: finished before", out)
        print(out / "result.json")
    return 0


if __name__ == "__main__":
    cli.run(main)
