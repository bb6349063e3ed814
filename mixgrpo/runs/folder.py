"""The files in a run's folder: whose it is, what was measured so far, what it came to."""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixgrpo.errors import ConfigError, RunError, shown
from mixgrpo.files import jsonlines, manifest
from mixgrpo.files.atomic import flush, write_json, write_text
from mixgrpo.files.records import (
    EVALUATIONS,
    MEANS,
    METRICS,
    ORIGIN,
    RESULT,
    SCORES,
    SCORES_DIGEST,
    TOTALS,
    DamagedFileError,
    check_lines,
    check_scores,
    is_line,
    read_origin,
    read_result,
    scores_file,
    sealed,
)
from mixgrpo.files.records import measured as measure
from mixgrpo.settings import usercode
from mixgrpo.settings.config import SCHEMA_VERSION, RunConfig
from mixgrpo.settings.configfile import dump_config, load_config
from mixgrpo.settings.continuation import why_not_continued
from mixgrpo.settings.identity import code_record, config_hash, differences, length_alone

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
_HEADER = f"# schema {SCHEMA_VERSION}, run "
"""What config.yaml begins with; the run's hash follows."""


def claim(config: RunConfig, folder: Path) -> None:
    """Write config.yaml, or check that the one there is of the same run and version."""
    file = folder / CONFIG
    header = f"{_HEADER}{config_hash(config)}"
    found = _first_line(file) if file.exists() else None
    if found == header:
        return
    if found is None or (found.startswith(_HEADER) and not _has_begun(folder)):
        usercode.write_record(folder, code_record(config))
        write_text(file, f"{header}\n{dump_config(config)}")
        return
    if found.startswith(_HEADER):
        if why_not := _why_not_lengthened(file, config):
            raise ConfigError(f"{file}: {_other_run(file, config, why_not)}")
        _lengthen(config, folder, load_config(file), header)
        return
    raise ConfigError(
        f"{file}: was written by another version (it begins {shown(found)}, this one writes "
        f"{header!r}); finish the run with that version, or remove its folder"
    )


def check_unchanged(
    config: RunConfig, folder: Path, code: dict[str, usercode.Modules] | None = None
) -> None:
    """ConfigError where a run is no longer the one that its folder was claimed for: what it reads,
    such as its code, was changed while it was loaded. `code`: the user's own, from before any of it
    was imported."""
    changed = ""
    if claimed(folder) != config_hash(config):
        changed = _what_changed(folder, config)
    elif code is not None and (others := usercode.changes(code, usercode.user_code(config))):
        changed = f"the code of {others}"
    if changed:
        raise ConfigError(
            f"{folder}: {changed} changed while the run was starting; run "
            "the same command again, with another --out if that refuses"
        )


def claimed(folder: Path) -> str | None:
    """The hash of the run that a folder belongs to, as it was when the run began; None where
    config.yaml does not say."""
    try:
        found = _first_line(folder / CONFIG)
    except OSError:
        return None
    return found.removeprefix(_HEADER) if found.startswith(_HEADER) else None


def _first_line(file: Path) -> str:
    with file.open(errors="replace") as stream:
        return stream.readline().strip()


def _has_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("metrics.jsonl", "eval.jsonl"))


def _other_run(file: Path, config: RunConfig, why_not: str) -> str:
    """What is said of a folder that belongs to another run, `why_not` included."""
    settings = _changes(file, config)
    if settings:
        return f"is of another run ({settings}); {why_not}"
    return (
        f"is of another run: {_what_changed(file.parent, config)} changed since it began; name "
        "another folder for a new run (--out), or restore what changed to continue this one"
    )


def _what_changed(folder: Path, config: RunConfig) -> str:
    """What may differ in two runs of the same settings, in words."""
    before, now = usercode.read_record(folder), code_record(config)
    if before is not None and before.settings == now.settings:
        return f"the code of {usercode.changes(before.code, now.code)}"
    if before is None and now.code and claimed(folder) == now.settings:
        return f"the code of {', '.join(now.code)} was not noted then, and may have been"
    return "the contents of its weights, prompts or code"


def _why_not_lengthened(file: Path, config: RunConfig) -> str:
    """Why a folder's run does not become `config`, and what to do; "" where `config` is the same
    run and goes on after it."""
    try:
        before = load_config(file)
    except ConfigError:
        return "choose another folder, or remove this one"
    if not length_alone(before, config):
        return "choose another folder, or remove this one"
    if why := why_not_continued(before, claimed(file.parent), config):
        return f"it does not continue: {why}; choose another folder"
    if (file.parent / "attempts").is_dir():  # its folder's name says which run it is
        return (
            "it is a sweep's: change `iterations` in the sweep file, or give harness.sweep the "
            "same --set, which continues it in a folder of its own"
        )
    if config.iterations < before.iterations:
        return "a run that is longer does not become shorter; choose another folder"
    return ""


def _lengthen(config: RunConfig, folder: Path, before: RunConfig, header: str) -> None:
    """Make the folder that of the longer run. The shorter one's result stays beside it."""
    kept = folder / f"result-{before.iterations:06d}.json"
    if (folder / RESULT).exists():
        (folder / RESULT).replace(kept)
    usercode.write_record(folder, code_record(config))
    # After that: a kill in between leaves the shorter run, which writes its result again.
    write_text(folder / CONFIG, f"{header}\n{dump_config(config)}")
    log.info(
        "%s: goes on from %d to %d iterations; the result of the former, if it had one, is kept as "
        "%s",
        folder,
        before.iterations,
        config.iterations,
        kept.name,
    )


def _changes(file: Path, config: RunConfig) -> str:
    """What another configuration's file has otherwise, as `iterations: 60, not 80`; "" where
    the settings are the same."""
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
    return "; ".join(texts[:3]) + more


def is_finished(config: RunConfig, folder: Path) -> bool:
    """Whether the run has its result, and the lines of which that tells.

    Where one of them is damaged the result is set aside with a warning, and of the lines those are
    left that a checkpoint vouches for, so that the run makes the others again.
    """
    try:
        result = read_result(folder)
        if result is None:
            return False
        if (result.hash, result.seed) != (config_hash(config), config.seed):
            raise DamagedFileError(folder / RESULT, "is of another run")
        try:
            check_lines(folder, result, config.evaluation.every, thorough=True)
        except DamagedFileError:
            Measured(config, folder).cut_back(vouched=bool(result.digests))
            raise
    except DamagedFileError as damage:
        aside = set_aside(folder / RESULT)
        warnings.warn(
            f"{damage}; the result is set aside as {aside.name}, and what is missing is made again "
            "from the newest checkpoint before it",
            stacklevel=2,
        )
        return False
    return True


_ASIDE = ".damaged-"


def set_aside(place: Path) -> Path:
    """Give a damaged file a name that nothing reads."""
    names = (place.with_name(f"{place.name}{_ASIDE}{k}") for k in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    place.rename(aside)
    return aside


def finished_after(folder: Path) -> int | None:
    """How many iterations a finished run has done; None of one that is not finished."""
    try:
        result = read_result(folder)
    except DamagedFileError:
        return None
    return result.iterations if result else None


class Measured:
    """metrics.jsonl, eval.jsonl and the scores of one run. Malformed lines count as missing, and so
    do those whose scores are missing."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.metrics = folder / METRICS
        self.evals = folder / EVALUATIONS
        self.origin = folder / ORIGIN

    def due(self, done: int) -> bool:
        """Whether an evaluation belongs after `done` iterations."""
        return done % self.config.evaluation.every == 0 or done == self.config.iterations

    def judged(self) -> set[int]:
        """The iterations that have their evaluation."""
        return {line["iteration"] for line in self._lines(self.evals)}

    def whole(self) -> int:
        """The iterations up to which nothing is missing; the evaluation after them may be."""
        numbers = [line["iteration"] for line in self._lines(self.metrics)]
        done = next((i for i, number in enumerate(numbers) if number != i), len(numbers))
        judged = self.judged()
        return next((m for m in range(done) if self.due(m) and m not in judged), done)

    def unchanged(self) -> int:
        """Like `whole`, but up to the first line whose digest is not the one that a checkpoint
        recorded."""
        whole = self.whole()
        for done, digests in self._manifests():
            if done <= whole:
                if digests is None or digests == self.digests(done):
                    break
                whole = done - 1
        return whole

    def digests(self, done: int) -> dict[str, str]:
        """Of the lines before `done` iterations, by file: what a checkpoint vouches for."""
        return {
            file.name: hashlib.sha256(
                "".join(
                    json.dumps(line) + "\n"
                    for line in jsonlines.whole_lines(file)
                    if is_line(file.name, line) and line["iteration"] < done
                ).encode()
            ).hexdigest()
            for file in (self.metrics, self.evals)
        }

    def cut_back(self, vouched: bool) -> None:
        """Leave only the lines before the newest checkpoint up to which nothing is damaged. With
        `vouched` only checkpoints that recorded digests of the lines count."""
        for file in (self.metrics, self.evals):
            if file.is_dir():
                set_aside(file)
        whole = self.unchanged()
        done = max(
            (m for m, digests in self._manifests() if m <= whole and (digests or not vouched)),
            default=0,
        )
        for file in (self.metrics, self.evals):
            jsonlines.replace(file, [x for x in self._lines(file) if x["iteration"] < done])

    def _manifests(self) -> Iterator[tuple[int, dict[str, str] | None]]:
        """The whole manifests of the checkpoints, the newest first: iterations, and `digests`."""
        for place in reversed(manifest.checkpoints(self.folder / CHECKPOINTS)):
            with contextlib.suppress(OSError, ValueError, RunError):
                yield int(place.name), manifest.read(place)["digests"]

    def _lines(self, file: Path) -> list[dict[str, Any]]:
        rewards = self.config.rewards
        names = rewards.train if file == self.metrics else (*rewards.train, *rewards.held_out)
        means = [f"reward_{name}_mean" for name in names]
        return [
            line
            for line in jsonlines.whole_lines(file)
            if is_line(file.name, line)
            and all(isinstance(line.get(key), int | float) for key in means)
            and (file == self.metrics or self._is_whole(line))
        ]

    def _is_whole(self, line: dict[str, Any]) -> bool:
        """Whether an evaluation has its scores, and as many images as it is to have here: the last
        one of what was a shorter run may have more."""
        with contextlib.suppress(DamagedFileError):
            check_scores(self.folder, line)
            if self.config.evaluation.final_images_per_prompt is None:
                return True
            images = self.config.evaluated_images(line["iteration"])
            return line.get("images") == images * (line.get("prompts") or 0)
        return False

    def belongs(self, line: dict[str, Any]) -> bool:
        """Whether a line of eval.jsonl is this run's, with all that belongs to it. One after the
        last iteration of what was a shorter run may be none."""
        return self.due(line["iteration"]) and self._is_whole(line)

    def keep(self, done: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Leave in the files what belongs to `done` iterations, and return it: their metrics, and
        the evaluations up to the one after them."""
        lines = [line for line in self._lines(self.metrics) if line["iteration"] < done]
        evals = [
            line
            for line in self._lines(self.evals)
            if line["iteration"] <= done and self.due(line["iteration"])
        ]
        jsonlines.replace(self.metrics, lines)
        jsonlines.replace(self.evals, evals)
        self._keep_scores(evals)
        self._disown(lines)
        return lines, evals

    def _keep_scores(self, evals: list[dict[str, Any]]) -> None:
        """Leave the scores of these evaluations alone."""
        folder = self.folder / SCORES
        if not folder.is_dir():
            if os.path.lexists(folder):
                set_aside(folder)
            return
        kept = {scores_file(self.folder, x["iteration"]) for x in evals if x.get(SCORES_DIGEST)}
        for path in folder.iterdir():
            if path in kept or _ASIDE in path.name:
                continue
            if path.is_dir() and not path.is_symlink():
                set_aside(path)
            else:
                path.unlink()

    def _disown(self, lines: list[dict[str, Any]]) -> None:
        """Of what was copied, only these are left: the run computes the others itself."""
        try:
            said = read_origin(self.folder)
            if said is None or said.iterations <= len(lines):
                return
        except DamagedFileError:
            said = None  # it says nothing
        if said is None or not lines:
            set_aside(self.origin) if said is None else self.origin.unlink()
            return
        seconds = sum(line["seconds_total"] for line in lines)
        rest = said.model_copy(update={"iterations": len(lines), "seconds": seconds})
        write_json(self.origin, rest.model_dump(mode="json", exclude_none=True))


def write_result(config: RunConfig, folder: Path, rewards: list[str]) -> None:
    """Finish the folder: the outcome from what was measured. RunError where some of it is lost."""
    measured = Measured(config, folder)
    if measured.whole() < config.iterations or config.iterations not in measured.judged():
        raise RunError(
            f"{folder}: lines of metrics.jsonl or eval.jsonl were lost while the run went on, or "
            "scores of an evaluation; run the same command again to make them again"
        )
    lines, evals = measured.keep(config.iterations)

    def judged(line: dict[str, Any]) -> dict[str, float]:
        return {name: line[f"reward_{name}_mean"] for name in rewards}

    def total(key: str) -> Any:
        return sum(line[key] for line in lines)

    # What the result vouches for must be on disk before the result is.
    for file in (measured.metrics, measured.evals):
        flush(file)
    result = {
        "schema": SCHEMA_VERSION,
        # Not of the files as they are by now.
        "hash": claimed(folder) or config_hash(config),
        "seed": config.seed,
        "iterations": len(lines),
        "before": judged(evals[0]),
        "after": judged(evals[-1]),
        **{key: total(key) / len(lines) if key in MEANS else total(key) for key in TOTALS},
        "evaluations": len(evals),
        "digests": {
            file.name: measure(file.read_bytes()).model_dump()
            for file in (measured.metrics, measured.evals)
        },
    }
    write_json(folder / RESULT, sealed(result))


OWNER = "owner"
"""The folder in a run's folder with the lease of its owner, one process at a time."""
