"""The sentences of the overall report: what a reader of ten seconds takes away, and what one of ten
minutes must know to check it."""

import math
from collections.abc import Collection

from harness.analysis.seconds import ONE_CORE
from harness.comparison import Comparison
from harness.overall.front import COSTS, front, hashes_by_arm, steps
from harness.overall.glance import findings
from harness.overall.questions import Overall
from harness.overall.studies import Study
from harness.study import paper
from harness.text import interval, listed


def summary(overall: Overall) -> list[str]:
    """What a reader of ten seconds takes away, and which studies contradict each other."""
    pairs = same_pairs(overall)
    contradiction = [f"Judged differently by several studies: {' '.join(pairs)}"] if pairs else []
    return [*findings(overall), *contradiction]


def of_the_paper(overall: Overall) -> list[str]:
    """How many of the paper's tables differ by more than their own noise, in ImageReward."""
    printed = [p for q in overall.questions for p in q.printed if p.score == "ir"]
    if not printed:
        return []
    low, high = paper.noise("ir") or (math.nan, math.nan)
    sizes = [p.against_noise for p in printed]
    beyond, of_its_size = sizes.count("beyond"), sizes.count("of its size")
    return [
        "One and the same setting of the paper differs from itself between tables by "
        f"{low:.3f} to {high:.3f} in ImageReward, its visible noise. Of the {len(printed)} "
        f"comparisons of the paper beside these studies, {beyond or 'none'} "
        f"{'has' if beyond == 1 else 'have'} a difference beyond the largest of that, "
        f"{of_its_size or 'none'} one of its size, and {sizes.count('within') or 'none'} only "
        "differences below the smallest."
    ]


def headline(overall: Overall) -> str:
    asked = len(overall.questions)
    kinds = [question.kind for question in overall.questions]
    parts = [
        f"{kinds.count(kind)} {words}"
        for kind, words in (
            ("differs", "have an arm that is better or worse"),
            ("equal", "have none that differs by more than the margin"),
            ("undecided", "are undecided"),
            ("told", "ask about something else than the reward"),
            ("open", "have no results to judge"),
        )
        if kind in kinds
    ]
    if not asked:
        return "No study has results yet."
    return f"{asked} question{'' if asked == 1 else 's'}: {listed(parts)}."


def front_sentences(overall: Overall) -> list[str]:
    """Which arms are on the fronts, and which steps of them are significant."""
    sentences = []
    for cost in COSTS:
        arms = front(overall.points, cost)
        if len(arms) < 2 and len(overall.points) < 2:
            continue
        names = listed([p.label for p in arms])
        of_steps = {step.point.label: step for step in steps(overall.points, cost)}
        apart = [
            f"{p.label} from {of_steps[p.label].against.label}"
            for p in arms[1:]
            if of_steps[p.label].verdict == "higher"
        ]
        unclear = [p.label for p in arms[1:] if of_steps[p.label].verdict == "not significant"]
        unknown = [p.label for p in arms[1:] if of_steps[p.label].verdict == "unknown"]
        sentence = f"Reward against {cost} per run: by their means {names} form the front."
        if apart:
            sentence += f" Along it, these are significantly different: {listed(apart)}."
        if unclear:
            sentence += (
                f" {listed(unclear)} {'is' if len(unclear) == 1 else 'are'} not significantly "
                "different from the best that costs no more, and may be on the front by chance."
            )
        if unknown:
            sentence += f" {listed(unknown)} cannot be judged."
        sentences.append(sentence)
    return sentences


def incomplete(overall: Overall) -> list[str]:
    """Studies with fewer runs than they ask for, and those without results."""
    sentences = []
    for question in overall.questions:
        study = question.study
        missing = len(study.analysis.unfinished)
        if missing:
            fewest = min(len(result.seeds) for result in study.analysis.arms)
            sentences.append(
                f"{study.sweep.name}: {missing} of {len(study.sweep.runs)} runs are not finished; "
                f"its arms have at least {fewest} of {len(study.sweep.seeds)} seeds."
            )
    return sentences + [f"{sweep.name}: {reason}." for sweep, reason in overall.absent]


def same_schedules(overall: Overall) -> list[str]:
    """Arms that are configured differently and compute the same."""
    return [
        f"{question.study.sweep.name}: {listed(list(map(question.study.analysis.label, group)))} "
        "are the same schedule over the whole run. Their scores are one measurement, not two."
        for question in overall.questions
        for group in question.study.analysis.same_schedule
    ] + [
        f"{point.label} ({point.study}) is the same as {listed(point.same_as)} in another study."
        for point in overall.points
        if point.same_as
    ]


def same_pairs(overall: Overall) -> list[str]:
    """Two settings that several studies compare and judge differently, by the runs' hashes: the
    study with most seeds first."""
    by_pair: dict[tuple[str, str], list[tuple[Study, Comparison]]] = {}
    for study in (question.study for question in overall.questions):
        runs = zip(*(study.runs[c] for c in ("arm", "seed", "hash")), strict=True)
        hashes = {(str(arm), int(seed)): str(own) for arm, seed, own in runs}
        for c in study.analysis.compared:
            if c.tested:
                first = c.seeds[0]
                pair = (hashes[c.arm, first], hashes[c.reference, first])
                by_pair.setdefault(pair, []).append((study, c))
    sentences = []
    for judged in by_pair.values():
        if len({c.verdict for _, c in judged}) > 1:
            judged.sort(key=lambda one: -len(one[1].seeds))
            parts = [
                f"{c.verdict} in {study.sweep.name} "
                f"({interval(c.simultaneous, signed=True)}, {len(c.seeds)} seeds)"
                for study, c in judged
            ]
            study, c = judged[0]
            names = f"{study.analysis.label(c.arm)} vs {study.analysis.label(c.reference)}"
            sentences.append(f"{names}: {', '.join(parts)}.")
    return sentences


def same_references(overall: Overall) -> list[str]:
    """Which studies compare with the same runs, by their hashes."""
    groups: list[tuple[set[str], list[str]]] = []
    for question in overall.questions:
        study = question.study
        if not study.analysis.compared:
            continue
        by_arm = hashes_by_arm(study)
        finished = set(study.runs["hash"])
        hashes_of_study = {
            h for arm in study.sweep.references.values() for h in by_arm[arm]
        } & finished
        names = [study.sweep.name]
        meeting = [group for group in groups if group[0] & hashes_of_study]
        groups = [group for group in groups if not group[0] & hashes_of_study]
        for hashes, others in meeting:
            hashes_of_study |= hashes
            names = [*others, *names]
        groups.append((hashes_of_study, names))
    return [
        f"{listed(names)} compare with the same runs of the reference, all or some of them. What "
        "chance did to these runs is in the differences of all these studies, which are not "
        "independent of each other."
        for _, names in groups
        if len(names) > 1
    ]


def notes(overall: Overall) -> list[str]:
    """How to read the page."""
    studies = [question.study for question in overall.questions]
    models = sorted({run.config.model.name for study in studies for run in study.sweep.runs})
    sentences = [
        "An effect is the mean over seeds of arm minus reference after training, on held-out "
        "prompts, paired by seed. Its interval holds for all comparisons of the study together "
        "with 95 %. An arm is equal where it lies within the study's margin, else better or worse "
        "where it excludes zero, and else undecided.",
        exploratory(overall),
        *same_references(overall),
        "Smallest detectable difference: the true one that had an 80 % chance of better or worse "
        "with these seeds. Seeds for the margin: how many give a true difference as large as the "
        "margin that chance; few seeds tell this only roughly, so that a range of 10 to 90 % "
        "stands beside it.",
        "Published numbers are of FLUX.1-dev with one run per row. What holds for "
        f"{listed([_model(name) for name in models]) if models else 'the embedded task'} need not "
        "hold there: neither confirms or contradicts the other.",
    ]
    core = {study.analysis.core_time for study in studies}
    if core == {True}:
        sentences.append(
            "Seconds are without evaluation and without what is measured beside the training. They "
            f"are {ONE_CORE}."
        )
    elif core:
        sentences.append(
            "Seconds are by the clock where the time of a core was not measured, and then depend "
            "on what else the machine did."
        )
    return sentences


def exploratory(overall: Overall) -> str:
    """How many claims the page makes, and how many false ones chance alone would."""
    families: list[Collection[Comparison]] = []
    for study in (question.study for question in overall.questions):
        families.append(study.analysis.compared)
        families += [of.values() for of in study.at_equal_cost.values()]
        families += [of.values() for of in study.analysis.other_comparisons.values()]
    tested = [family for family in families if any(c.tested for c in family)]
    claims = sum(c.verdict in ("better", "worse") for family in tested for c in family)
    return (
        f"Better and worse stand here {claims} times, in {len(tested)} groups of comparisons (a "
        "study's arms in one reward, at equal iterations, evaluations or seconds). Each group has "
        "an error of 5 % of its own: if nothing differed at all, about "
        f"{0.05 * len(tested):.1f} of the groups would make a false claim. No comparison was named "
        "as the main one before its runs: all of this is exploratory."
    )


def _model(name: str) -> str:
    return "the embedded task" if name == "scenes" else name
