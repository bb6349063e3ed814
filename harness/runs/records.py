"""The files that the harness itself reads back, as models; what the trainer writes is in
`mixgrpo.files.records`, whose errors these have too."""

from pydantic import Field, JsonValue

from mixgrpo.files.records import Count, Record, Seconds


class Attempt(Record):
    """One record of attempts/: what one job did to a run. Earlier versions kept less."""

    number: Count
    pid: Count
    job_id: str | None = None
    """The scheduler's name for the job, for its logs; nothing is keyed by it."""
    started: Seconds
    """Seconds since the epoch, as `ended`."""
    ended: Seconds | None = None
    reason: str | None = None
    error: str | None = None
    """Why it failed: one line of message, or a traceback with the message last."""
    executor: str | None = None
    """inline, local or slurm: how the job was started."""
    sweep: str | None = None
    """The sweep that asked for it; several may have the same run. Earlier versions: none."""
    host: str | None = None
    """The machine or node, for its owner: whom a process id belongs to."""
    warnings: tuple[str, ...] = ()
    """What the job warned of, each text once; the log has them with their places."""
    restarts: Count | None = None
    """How often Slurm had queued the job again before."""
    began_at: Count = 0
    """Iterations of the newest checkpoint at its start."""
    evaluation_taken: bool = False
    """Whether the evaluation before training was made by another run."""
    gpus: float = Field(0.0, ge=0, lt=1e6)
    """The GPUs it occupied; a part of one where runs share it."""
    commit: str | None = None
    """The commit of the code that ran."""
    dirty: bool | None = None
    """Whether that code had been changed since."""
    made_on: dict[str, JsonValue] | None = None
    """What its bytes depend on beside the settings: code, versions, machine, processes."""
    log: str | None = None
    """Its output, as a path in the run's folder; None where that went to the terminal."""

    @property
    def last_line(self) -> str:
        return (self.error or "").strip().rpartition("\n")[2]


class Environment(Record):
    """env.json: what a run was computed with."""

    commit: str | None = None
    dirty: bool | None = None
    python: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    system: str | None = None
    cpu: str | None = None
    threads: Count | None = None
    device: str | None = None
