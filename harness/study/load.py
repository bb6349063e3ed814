"""Reads a sweep file and checks it: arms, seeds, references, views, probes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.study.arms import Arm as Arm
from harness.study.arms import make_arms, ways_to_name
from harness.study.configs import arm_configs, arm_layers, check_distinct
from harness.study.margin import DEFAULT as MARGIN
from harness.study.margin import Margin, read_margin
from harness.study.mistakes import wrong_settings
from harness.study.names import check_name
from harness.study.paper import TABLES
from harness.study.profiles import Chosen, Given, asked_of_slurm
from harness.study.references import references_of, within_label
from harness.study.seeds import Seeds, seeds_of
from harness.study.spec import Run, Sweep
from harness.study.sweepfile import MOST_RUNS, SweepFile, read_file
from harness.study.views import DEFAULT as ON_EVERY_PAGE
from harness.study.views import VIEWS
from mixgrpo.errors import ErrorList
from mixgrpo.settings.config import RunConfig
from mixgrpo.settings.configfile import located_errors
from mixgrpo.settings.identity import config_hashes
from mixgrpo.settings.layers import Layers
from mixgrpo.settings.probes import PROBES, options_of
from mixgrpo.settings.trust import check_jobs
from mixgrpo.settings.yamlfile import Key
from mixgrpo.text.suggest import did_you_mean


def profile_names(path: Path) -> list[str]:
    """The profiles of a sweep file, in its order."""
    return list(read_file(path)[1].profiles)


def load_sweep(
    path: Path,
    profile: str | None = None,
    overrides: Sequence[str] = (),
    trust: bool = True,
    until_decided: bool = False,
) -> Sweep:
    """The sweep that a file describes. ConfigError names file, line, key and fix.

    `overrides` are `KEY=VALUE` texts laid on top of every arm. Without `trust` a file of another
    user may not name code to import (`mixgrpo.settings.trust`). With `until_decided` a file of
    fixed seeds is read as one with the usual looks (`harness.study.seeds`).
    """
    chosen = Chosen(path, profile)
    errors = ErrorList()
    with errors.collected():
        check_jobs(path, asked_of_slurm(chosen.parts), chosen.document.place, trust)
    arms: list[Arm] = []
    asked = Seeds(())
    layers: dict[str, Layers] = {}
    configs: dict[str, RunConfig] = {}
    references: dict[str, str] = {}
    views: tuple[str, ...] = ()
    paper_rows: dict[str, str] = {}
    probes: dict[str, dict[str, Any]] = {}
    answered_by = measure = ""
    margin = MARGIN
    with errors.collected():
        check_name(chosen.file.name, chosen.document.place(("name",)))
    with errors.collected():
        asked = seeds_of(chosen, until_decided)
    seeds = asked.seeds
    with errors.collected():
        arms = make_arms(chosen, MOST_RUNS // max(1, len(seeds)))
    with errors.collected():
        views = _views(chosen)
        answered_by = _answered_by(chosen)
    with errors.collected():
        probes = _probes(chosen)
    with errors.collected():
        margin = _margin(chosen)
    if not arms:
        errors.errors += wrong_settings(chosen.document, SweepFile)
    else:
        with errors.collected():
            references = references_of(chosen, arms)
            _check_compared(chosen, asked, references)
        with errors.collected():
            paper_rows = _paper_rows(chosen, arms)
        with errors.collected():
            layers = arm_layers(chosen, list(overrides), arms)
            configs = arm_configs(layers, seeds[0] if seeds else 0, trust)
            measure = _measure(chosen, configs)
            check_distinct(chosen, arms, configs, layers)
    with errors.collected():
        _check_names_of_runs(chosen, arms, seeds)
    errors.raise_all()
    hashes = {}
    for arm in arms:
        with located_errors(layers[arm.name]):
            hashes[arm.name] = config_hashes(configs[arm.name], seeds)
    runs = [
        _run(arm.name, configs[arm.name], seed, hashes[arm.name][index])
        for index, seed in enumerate(seeds)
        for arm in arms
    ]
    notes = chosen.get("notes")
    return Sweep(
        name=chosen.file.name,
        question=chosen.file.question,
        file=path,
        profile=chosen.profile,
        arms=tuple(arms),
        seeds=seeds,
        looks=asked.looks,
        budget=asked.budget,
        runs=tuple(runs),
        reference=references[arms[0].name],
        within=references if chosen.file.within else {},
        within_label=within_label(chosen),
        measure=measure,
        margin=margin,
        paper=chosen.file.paper,
        paper_rows=paper_rows,
        notes=notes.value.strip() if notes else "",
        overrides=tuple(overrides),
        variant=chosen.variant(overrides),
        views=views,
        answered_by=answered_by,
        probes=probes,
        layers=layers,
    )


def _check_compared(chosen: Chosen, asked: Seeds, references: dict[str, str]) -> None:
    """ConfigError for looks where no arm is compared with another."""
    if asked.looks and all(arm == reference for arm, reference in references.items()):
        given = chosen.get("seeds") or Given(None, ("seeds",))
        raise chosen.error(
            given.key,
            "no arm is compared with another, so that nothing can be decided; add an arm, or give "
            "a fixed number of seeds",
        )


def _run(arm: str, config: RunConfig, seed: int, identity: str) -> Run:
    return Run(arm, seed, config.model_copy(update={"seed": seed}), identity)


def known_folders(path: Path, loaded: Sweep | None = None) -> set[str]:
    """The names of the run folders of all profiles of the file.

    `loaded`: a sweep read from this file, which need not be read again. UnidentifiedError where a
    profile needs files that are not on this machine.
    """
    sweeps = [] if loaded is None or loaded.overrides else [loaded]
    read = {sweep.profile for sweep in sweeps}
    sweeps += [
        load_sweep(path, name or None) for name in profile_names(path) or [""] if name not in read
    ]
    return {run.folder_name for sweep in sweeps for run in sweep.runs}


def _check_names_of_runs(chosen: Chosen, arms: list[Arm], seeds: Iterable[int]) -> None:
    """ConfigError for an arm with the name of another arm's run: `--only` takes both."""
    names, known = {arm.name for arm in arms}, set(map(str, seeds))
    for arm in arms:
        other, _, seed = arm.name.rpartition("-seed")
        if other in names and seed in known:
            key = (chosen.get("arms") or chosen.get("grid") or Given(None, ())).key
            raise chosen.error(
                (*key, arm.name),
                f"the arm {arm.name} is called as the run of arm {other} with seed {seed} is; give "
                "it another name",
            )


def _measure(chosen: Chosen, configs: dict[str, RunConfig]) -> str:
    measured = [{*c.rewards.train, *c.rewards.held_out} for c in configs.values()]
    everywhere = set.intersection(*measured)
    given = chosen.get("measure") or Given(None, ("measure",))
    measure = given.value or next(iter(next(iter(configs.values())).rewards.train))
    if measure not in everywhere:
        arm, has = next(
            pair for pair in zip(configs, measured, strict=True) if measure not in pair[1]
        )
        hint = did_you_mean(measure, sorted(everywhere)) if everywhere else ""
        raise chosen.error(
            given.key,
            f"not every arm measures the reward {measure}{hint}; arm {arm}, of model "
            f"{configs[arm].model.name}, has {', '.join(sorted(has))}: name it in rewards.held_out "
            "of every arm that does not train on it",
        )
    return str(measure)


def _margin(chosen: Chosen) -> Margin:
    given = chosen.get("margin")
    if given is None:
        return MARGIN
    try:
        return read_margin(given.value)
    except ValueError as error:
        raise chosen.error(given.key, str(error)) from None


def _paper_rows(chosen: Chosen, arms: list[Arm]) -> dict[str, str]:
    if chosen.file.paper is None:
        return {}
    if chosen.file.paper not in TABLES:
        hint = did_you_mean(chosen.file.paper, TABLES)
        raise chosen.error(("paper",), f"no such table: {chosen.file.paper}{hint}")
    published = TABLES[chosen.file.paper].rows
    ways = {arm.name: ways_to_name(arm) for arm in arms}
    given = chosen.get("paper_rows")
    if given is None:
        return {name: texts[-1] for name, texts in ways.items() if texts[-1] in published}
    rows = {str(key): str(row) for key, row in given.value.items()}
    for key, row in rows.items():
        if row not in published:
            raise chosen.error(
                (*given.key, key),
                f"the table {chosen.file.paper} has no row {row}{did_you_mean(row, published)}",
            )
        if not any(key in texts for texts in ways.values()):
            known = [text for texts in ways.values() for text in texts]
            raise chosen.error(
                (*given.key, key),
                f"no such arm or grid value: {key}{did_you_mean(key, known)}",
            )
    return {
        name: next(rows[text] for text in texts if text in rows)
        for name, texts in ways.items()
        if any(text in rows for text in texts)
    }


def _views(chosen: Chosen) -> tuple[str, ...]:
    for i, name in enumerate(chosen.file.views):
        if name not in VIEWS:
            raise chosen.error(("views", i), f"no such view: {name}{did_you_mean(name, VIEWS)}")
        if name in ON_EVERY_PAGE:
            raise chosen.error(("views", i), f"the view {name} is on every page; leave it out")
        if name in chosen.file.views[:i]:
            raise chosen.error(("views", i), f"the view {name} is named twice; keep one")
    return chosen.file.views


def _answered_by(chosen: Chosen) -> str:
    given, views = chosen.file.answered_by, chosen.file.views
    if given is not None and given not in views:
        hint = did_you_mean(given, views) if views else "; the file has no `views:`"
        raise chosen.error(("answered_by",), f"{given} is not one of the file's views{hint}")
    return given or ""


def _probes(chosen: Chosen) -> dict[str, dict[str, Any]]:
    given = chosen.get("probes")
    if given is None:
        return {}
    probes = {}
    for name, options in given.value.items():
        key: Key = (*given.key, name)
        if name not in PROBES:
            raise chosen.error(key, f"no such probe{did_you_mean(name, PROBES)}")
        try:
            probes[name] = options_of(name, options or {}).model_dump(mode="json")
        except ValidationError as error:
            first = error.errors()[0]
            for part in first["loc"]:
                key = (*key, part) if (*key, part) in chosen.document.lines else key
            if first["type"] == "extra_forbidden":
                known = PROBES[name].options.model_fields
                hint = did_you_mean(str(first["loc"][-1]), known)
                raise chosen.error(key, f"unknown option{hint}") from None
            text = first["msg"].replace("Input should be", "expected")
            raise chosen.error(key, f"{text}, not {first['input']!r}") from None
    return probes
