"""Puts the measurements of several studies together, in which one setting is one arm."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.columns import ARM, RUN, SEED, STATE
from harness.analysis.results import Results
from harness.analysis.scores import KEYS, read_scores
from harness.analysis.settings import settings_key, settings_of, varied
from harness.frames.study import Arms, Study
from harness.study.spec import Sweep

if TYPE_CHECKING:
    import pandas as pd

STUDY = "study"


@dataclass(frozen=True)
class Source:
    """One study's measurements."""

    sweep: Sweep
    results: Results
    runs_dir: Path | None
    """Where its runs lie; None for the copies kept with a report, which have no scores."""
    code: Mapping[str, str] = field(default_factory=dict)
    """By arm, the user's own code that made its runs, where that may not be the code of today."""


@dataclass
class _Arm:
    """What becomes one arm: all that has these settings, in whatever study."""

    study: str
    """The first that has it; its name and label are taken."""
    name: str
    label: str
    settings: dict[str, Any]
    hashes: dict[int, str] = field(default_factory=dict)
    """By seed."""


def pool(sources: Sequence[Source]) -> Study:
    """All measurements as one study. Warns of what is damaged."""
    arms, names = _arms(sources)
    settings = {name: arm.settings for name, arm in arms.items()}
    runs, taken = _runs(sources, names, list(arms))
    frames = {
        kind: _concat(
            [_renamed(getattr(s.results, kind), names[i]) for i, s in enumerate(sources)],
            list(arms),
            taken,
        )
        for kind in ("metrics", "evaluations")
    }
    left_out = [text for source in sources for text in source.results.left_out]
    _warn_of(left_out)
    machines = sorted({machine for source in sources for machine in source.results.machines})
    references: dict[str, set[str]] = {}
    for i, source in enumerate(sources):
        for arm, reference in source.sweep.references.items():
            if source.sweep.reference:
                references.setdefault(names[i][arm], set()).add(names[i][reference])
    return Study(
        name=", ".join(dict.fromkeys(source.sweep.name for source in sources)),
        question=" ".join(dict.fromkeys(s.sweep.question for s in sources if s.sweep.question)),
        arms=Arms(settings, {name: arm.label for name, arm in arms.items()}, varied(settings)),
        results=Results(runs, frames["metrics"], frames["evaluations"], machines, left_out),
        measures=tuple(dict.fromkeys(s.sweep.measure for s in sources if s.sweep.measure)),
        references=references,
        read_scores=_score_reader(sources, names, list(arms), taken),
    )


def _arms(sources: Sequence[Source]) -> tuple[dict[str, _Arm], list[dict[str, str]]]:
    """The arms by name, and by source the name that each of its arms has here.

    Two arms are one where they have a run in common, or the same settings and no seed under which
    they are different runs.
    """
    arms: list[_Arm] = []
    of_sources: list[dict[str, int]] = []
    known: dict[Any, list[int]] = {}
    for source in sources:
        settings = settings_of(source.sweep)
        labels = {arm.name: arm.label for arm in source.sweep.arms}
        first = {run.arm: run.config for run in reversed(source.sweep.runs)}
        runs: dict[str, dict[int, str]] = {}
        for run in source.sweep.runs:
            runs.setdefault(run.arm, {})[run.seed] = run.hash
        of_sources.append({})
        for name, of_arm in settings.items():
            code = source.code.get(name, "")
            signs = [(settings_key(first[name]), code), *runs[name].items()]
            taken = {*of_sources[-1].values()}
            like = (i for sign in signs for i in known.get(sign, ()) if i not in taken)
            same = next((i for i in like if _fits(arms[i].hashes, runs[name])), len(arms))
            if same == len(arms):
                arms.append(_Arm(source.sweep.name, name, labels[name], of_arm))
            arms[same].hashes |= runs[name]
            for sign in signs:
                known.setdefault(sign, []).append(same)
            of_sources[-1][name] = same
    names = _distinct_names(arms)
    by_source = [{old: names[i] for old, i in of.items()} for of in of_sources]
    return dict(zip(names, arms, strict=True)), by_source


def _fits(hashes: Mapping[int, str], others: Mapping[int, str]) -> bool:
    return all(others.get(seed, identity) == identity for seed, identity in hashes.items())


def _distinct_names(arms: Sequence[_Arm]) -> list[str]:
    """The arms' names; where two share one, behind their study's name, or else with a number."""
    given = [arm.name for arm in arms]
    names: list[str] = []
    for arm in arms:
        name = arm.name if given.count(arm.name) == 1 else f"{arm.study}/{arm.name}"
        number, free = 1, name
        while free in names:
            number += 1
            free = f"{name} ({number})"
        names.append(free)
    return names


def _runs(
    sources: Sequence[Source], names: Sequence[Mapping[str, str]], arms: list[str]
) -> "tuple[pd.DataFrame, dict[tuple[str, int], int]]":
    """One row a run, with the studies that ask for it, and by arm and seed the source that the run
    is read from: the first in which it is finished, else the first."""
    import pandas as pd

    of_sources = [
        _renamed(source.results.runs, names[i]).assign(_source=i)
        for i, source in enumerate(sources)
    ]
    every = pd.concat(of_sources, ignore_index=True)
    every.insert(0, STUDY, [sources[i].sweep.name for i in every["_source"]])
    studies = every.groupby(RUN, sort=False)[STUDY].agg(lambda of: ", ".join(dict.fromkeys(of)))
    finished = every[STATE] == "finished"
    order = every.assign(_late=~finished).sort_values(["_late", "_source"], kind="stable")
    runs = order.drop_duplicates(RUN).drop(columns="_late")
    runs[STUDY] = studies.loc[pd.MultiIndex.from_frame(runs[RUN])].to_numpy()
    runs = _in_order(runs, arms)
    pairs = zip(runs[ARM], runs[SEED], runs.pop("_source"), strict=True)
    return runs, {(str(arm), int(seed)): int(source) for arm, seed, source in pairs}


def _renamed(frame: "pd.DataFrame", names: Mapping[str, str]) -> "pd.DataFrame":
    """A frame of one source with its arms as text under their names here."""
    return frame.assign(arm=frame[ARM].astype("str").map(dict(names)).astype("str"))


def _concat(
    frames: "Sequence[pd.DataFrame]", arms: list[str], taken: Mapping[tuple[str, int], int]
) -> "pd.DataFrame":
    """The lines of the sources, each run's from the one source that it is read from."""
    import pandas as pd

    kept = []
    for i, frame in enumerate(frames):
        pairs = frame[RUN].drop_duplicates()
        mine = [
            (str(arm), int(seed))
            for arm, seed in zip(pairs[ARM], pairs[SEED], strict=True)
            if taken.get((str(arm), int(seed))) == i
        ]
        if len(mine) < len(pairs):
            index = pd.MultiIndex.from_frame(frame[RUN])
            frame = frame[index.isin(pd.MultiIndex.from_tuples(mine, names=RUN))]
        if len(frame):
            kept.append(frame)
    joined = pd.concat(kept, ignore_index=True) if kept else frames[0].iloc[:0]
    return _in_order(joined, arms)


def _in_order(frame: "pd.DataFrame", arms: list[str]) -> "pd.DataFrame":
    """Arm by arm, then by seed; arms are a category."""
    import pandas as pd

    categories = pd.CategoricalDtype(arms, ordered=False)
    frame = frame.assign(arm=frame[ARM].astype(categories))
    codes = frame[ARM].cat.codes
    order = frame.assign(_code=codes)[["_code", SEED]].sort_values(["_code", SEED], kind="stable")
    return frame.loc[order.index].reset_index(drop=True)


def _score_reader(
    sources: Sequence[Source],
    names: Sequence[Mapping[str, str]],
    arms: list[str],
    taken: Mapping[tuple[str, int], int],
) -> "Callable[[], pd.DataFrame]":
    """A function that reads the score of every image, once. It warns of what is damaged, and of
    studies of which only a report's measurements are there."""

    @cache
    def read() -> "pd.DataFrame":
        import pandas as pd

        left_out: list[str] = []
        frames = []
        for i, source in enumerate(sources):
            found = pd.DataFrame(columns=[*KEYS])
            if source.runs_dir is None:
                left_out.append(
                    f"{source.sweep.name}: no scores of single images: they lie in run folders, "
                    "and only the measurements of a report are there"
                )
            else:
                found = read_scores(source.sweep, source.runs_dir, left_out=left_out)
            frames.append(_renamed(found, names[i]))
        _warn_of(left_out, stacklevel=5)
        return _concat(frames, arms, taken)

    return read


def _warn_of(left_out: Sequence[str], stacklevel: int = 4) -> None:
    if left_out:
        warnings.warn("left out: " + "; ".join(left_out), stacklevel=stacklevel)
