"""Which runs of a sweep are the same run at first, and which of them computes that part for all.

A run starts from the checkpoint of another one at the point where the two part, so that every
iteration that several runs have in common is computed once: with each run taken from that one
before it with which it has most in common, as many iterations are computed as the tree of their
paths has.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from harness.runs.folder import checkpoints_of
from harness.runs.store import LIVE, RunState
from harness.study.spec import Run
from mixgrpo.settings.shared_prefix import common_length, must_equal, path

LEAST_ITERATIONS = 2
LEAST_PART = 0.02
"""Less than this of a run is not worth a checkpoint more and waiting for it: one iteration may be
common by chance, where windows are drawn, and a run's start costs about as much."""
_NEIGHBOURS = 8
"""So many runs on either side, in the order of their paths, are looked at for a source."""


@dataclass(frozen=True)
class Trunk:
    """Where a run starts."""

    source: str
    """Name of the folder of the run whose checkpoint it takes."""
    iterations: int
    ready: bool
    """Whether that checkpoint is there."""


@dataclass(frozen=True)
class Member:
    run: Run
    path: str

    @property
    def name(self) -> str:
        return self.run.folder_name

    @property
    def least(self) -> float:
        """Fewer iterations are not shared with it."""
        return max(LEAST_ITERATIONS, LEAST_PART * self.run.config.iterations)


Family = tuple[Member, ...]
"""Runs of one seed that differ only in how their windows move and in how long they are."""


def families(runs: Iterable[Run]) -> list[Family]:
    """All families of at least two runs, each in the order of the sweep."""
    alike: dict[str, str] = {}
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        if run.arm not in alike:  # the runs of an arm differ in their seeds alone
            alike[run.arm] = must_equal(run.config)
        groups.setdefault((run.seed, alike[run.arm]), []).append(run)
    return [
        tuple(Member(run, path(run.config)) for run in group)
        for group in groups.values()
        if len(group) > 1
    ]


@dataclass
class _Growing:
    """The members of a family that can be sources, as they are found."""

    made: dict[str, str] = field(default_factory=dict)
    """The run that has a checkpoint after these iterations, by the path of these."""
    lengths: list[int] = field(default_factory=list)
    """How long those paths are, the longest first."""
    order: list[tuple[str, str]] = field(default_factory=list)
    """Path and name of those that will come to further points, sorted."""
    reached: dict[str, int] = field(default_factory=dict)
    """Iterations that they are past, by name."""
    promises: dict[str, AbstractSet[int]] = field(default_factory=dict)
    """The points at which those that are under way will leave a checkpoint, by name."""

    def add(self, member: Member, past: int) -> None:
        insort(self.order, (member.path, member.name))
        self.reached[member.name] = past

    def point(self, source: str, most: int) -> int:
        """The last of the first `most` iterations after which the source will have a checkpoint.
        0 for none."""
        past = self.reached.get(source, most + 1)
        if source in self.promises:
            return max((m for m in self.promises[source] if past <= m <= most), default=0)
        return most if past <= most else 0


def trunks(
    family: Family,
    states: Mapping[str, RunState],
    comes: Callable[[RunState], bool],
    promised: Callable[[RunState], AbstractSet[int]],
    queued: bool = False,
) -> dict[str, Trunk]:
    """From where each run of a family starts that has nothing yet, by its folder's name.

    Left out are those that start from nothing. `states` are those of the runs that count, by folder
    name, `comes` says of one whether it is under way or will be, `promised` of one under way which
    checkpoints it was told to leave. Where starts are `queued`, one of these that it was not told
    to leave may be gone by then.
    """
    starting: list[Member] = []
    begun: list[Member] = []
    for member in family:
        if member.name in states:
            (starting if may_start(states[member.name]) else begun).append(member)
    if not starting:
        return {}
    tree = _Growing()
    for member in begun:
        state = states[member.name]
        points = checkpoints_of(state.folder)
        if state.state in LIVE:
            tree.promises[member.name] = promise = promised(state)
            stay = [m for m in points if m in promise] if queued else points
        else:
            stay = points
        for point in (point for point in stay if point <= len(member.path)):
            tree.made.setdefault(member.path[:point], member.name)
        if comes(state):
            # What does not run goes back to its newest checkpoint.
            running = state.state == "running"
            tree.add(member, state.iteration if running else max(points, default=0))
    tree.lengths = sorted({len(found) for found in tree.made}, reverse=True)
    found: dict[str, Trunk] = {}
    for member in starting:
        trunk = _source(tree, member, found)
        if trunk is not None:
            found[member.name] = trunk
        if comes(states[member.name]):
            tree.add(member, trunk.iterations if trunk else 0)
    return found


def may_start(state: RunState) -> bool:
    """Whether a run has nothing of its own that it would continue from."""
    if state.state == "waiting":
        return True
    return state.state not in ("finished", *LIVE) and not checkpoints_of(state.folder)


def _source(tree: _Growing, member: Member, found: Mapping[str, Trunk]) -> Trunk | None:
    """The best place for a run to start from: the longest common part, and of these one that is
    there."""
    best = None
    for length in tree.lengths:
        if length >= member.least and member.path[:length] in tree.made:
            best = Trunk(tree.made[member.path[:length]], length, ready=True)
            break
    at = bisect_left(tree.order, (member.path, member.name))
    for near in (tree.order[at : at + _NEIGHBOURS], tree.order[max(0, at - _NEIGHBOURS) : at]):
        for theirs, name in near:
            common = common_length(member.path, theirs)
            if common < member.least or (best is not None and common <= best.iterations):
                continue
            source = _who_computes(common, name, found)
            point = tree.point(source, common)
            if point >= member.least and (best is None or point > best.iterations):
                best = Trunk(source, point, ready=False)
    return best


def _who_computes(iterations: int, name: str, found: Mapping[str, Trunk]) -> str:
    """The run that makes these iterations itself, where `name` takes them from another."""
    while name in found and found[name].iterations >= iterations:
        name = found[name].source
    return name


def points(found: Mapping[str, Trunk]) -> dict[str, set[int]]:
    """The iterations at which runs must keep a checkpoint for others, by name."""
    kept: dict[str, set[int]] = {}
    for trunk in found.values():
        kept.setdefault(trunk.source, set()).add(trunk.iterations)
    return kept


def needed(unstarted: Sequence[tuple[str, str]], source: Member, iterations: int) -> bool:
    """Whether a run may yet start from this checkpoint of the source's.

    `unstarted` are path and name of those in the family that have nothing yet, sorted.
    """
    beginning = source.path[:iterations]
    at = bisect_left(unstarted, (beginning, ""))
    # All that begin so stand together, and the source is among them once at most.
    return any(
        path.startswith(beginning) and name != source.name for path, name in unstarted[at : at + 2]
    )


def superfluous(
    present: Sequence[int], kept: Collection[int], every: int, newest: int, last: int, over: bool
) -> list[int]:
    """Of the checkpoints that were kept for others, those that the run itself does not need.

    `present` are all of the run's, `kept` those that nobody else needs any more; the run itself
    keeps the `newest` of those that it makes every `every` iterations and at the `last`. `over`
    says that it is finished.
    """
    own = [m for m in present if m not in kept or m % every == 0 or m == last]
    stay = {*own[-newest:], max(present, default=0)}
    ahead = max(own, default=0)
    return [m for m in present if m in kept and m not in stay and (over or ahead > m)]
