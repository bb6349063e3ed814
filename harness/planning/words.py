"""What a sweep with looks says: at each look, in the end, in its status and in its plan."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness.planning.standing import Standing
from harness.study.spec import Sweep
from harness.text import listed, number

if TYPE_CHECKING:
    from harness.evidence.sequential import Decision


def news(sweep: Sweep, before: Standing, after: Standing) -> Iterator[str]:
    """What was found since `before`: a line for each arm that was looked at, and what is next."""
    found = {arm: made[len(before.decisions[arm]) :] for arm, made in after.decisions.items()}
    for arm, made in found.items():
        if made:
            yield f"{arm}: {_verdict(made[-1], after)}"
    if any(found.values()) and not after.end:
        arms = listed(after.undecided)
        yield f"not decided yet: {arms}; look {after.look} at {after.seeds} seeds begins"


def outcome(sweep: Sweep, standing: Standing) -> list[str]:
    """In the end: each arm's verdict, its seeds, and what fixed seeds would have cost."""
    lines = [
        f"{arm}: {_verdict(made[-1], standing) if made else 'not looked at'}"
        for arm, made in standing.decisions.items()
    ]
    if not standing.end:
        return [*lines, f"look {standing.look} at {standing.seeds} seeds is not complete"]
    if standing.end == "budget":
        following = standing.plan.looks[standing.look]
        lines.append(
            f"ended by the budget of {sweep.budget}: the look at {following} seeds does not fit"
        )
    fixed = len(sweep.arms) * standing.plan.most
    lines.append(
        f"{standing.runs} runs were needed; {standing.plan.most} seeds for every arm would have "
        f"been {fixed}: {fixed - standing.runs} saved"
    )
    return lines


def planned(sweep: Sweep, standing: Standing) -> str:
    """For --plan: the looks, the most runs, and what is needed now."""
    looks = ", ".join(map(str, standing.plan.looks))
    most = len(sweep.arms) * standing.plan.most
    bound = f", or until {sweep.budget} are spent" if sweep.budget else ""
    now = (
        f"{_ENDED[standing.end]} after {standing.seeds} seeds"
        if standing.end
        else f"look {standing.look} at {standing.seeds} seeds, {standing.runs} runs until then"
    )
    return (
        f"seeds until it is decided: looks at {looks} seeds, at most {most} runs{bound}; now: {now}"
    )


_ENDED = {
    "decided": "all is decided",
    "last look": "ended by the last look",
    "budget": "ended by the budget",
}


def status(standing: Standing) -> list[str]:
    """Each comparison: whether it is decided, its seeds, the boundary and how far it is."""
    now = (
        _ENDED[standing.end]
        if standing.end
        else f"look {standing.look} of {len(standing.plan.looks)} at {standing.seeds} seeds"
    )
    rows = [f"seeds until it is decided: {now}"]
    for arm, made in standing.decisions.items():
        if not made:
            rows.append(f"  {arm}: needs more seeds: not looked at yet")
            continue
        rows.append(f"  {arm}: {_verdict(made[-1], standing)}; {_distance(made[-1])}")
    return rows


def as_data(standing: Standing) -> dict[str, Any]:
    """The same for programs; numbers that are not known are None."""
    return {
        "looks": list(standing.plan.looks),
        "look": standing.look,
        "seeds": standing.seeds,
        "end": standing.end or None,
        "comparisons": {
            arm: _data(made[-1]) if made else None for arm, made in standing.decisions.items()
        },
    }


def _data(found: "Decision") -> dict[str, Any]:
    interval = found.comparison.interval
    numbers = {
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "statistic": found.statistic,
        "boundary": found.boundary,
        "to_difference": found.to_difference,
        "to_equality": found.to_equality,
    }
    return {
        "verdict": found.verdict,
        "decided": found.decided,
        "seeds": found.look.seeds,
        "pairs": found.look.pairs,
        "next_look": found.next_look.seeds if found.next_look else None,
        **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
    }


def _verdict(found: "Decision", standing: Standing) -> str:
    """`better after 5 seeds, +0.031 [0.012, 0.050]`."""
    verdict: str = found.verdict
    if verdict == "undecided" and not standing.end:
        verdict = "needs more seeds, undecided"
    if found.comparison.reason == "identical":
        verdict = "equal (no score differs)"
    elif verdict == "equal":
        verdict = f"equal (within ±{found.comparison.margin:g})"
    interval, look = found.comparison.interval, found.look
    pairs = "" if look.pairs == look.seeds else f" ({look.pairs} with a pair)"
    ends = f" [{number(interval.low)}, {number(interval.high)}]" if interval.known else ""
    return (
        f"{verdict} after {look.seeds} seeds{pairs}, {number(interval.estimate, signed=True)}{ends}"
    )


def _distance(found: "Decision") -> str:
    """How far the boundary is, or was passed."""
    if math.isnan(found.statistic):
        return f"no t: {found.comparison.reason}"
    t, bound = abs(found.statistic), f"{found.boundary:.2f}"
    if found.verdict == "equal":
        return f"t of equality {found.equality_statistic:.2f}, boundary {bound}"
    text = f"|t| {t:.2f}, boundary {bound}"
    if found.decided:
        return text
    text += f", {found.to_difference:.2f} to go"
    if not math.isnan(found.equality_statistic):
        text += f"; t of equality {found.equality_statistic:.2f}, {found.to_equality:.2f} to go"
    return text
