"""The files that the harness writes and reads, as models. Those of the trainer, and the errors, are
in `mixgrpo.files.records`."""

from pydantic import Field, JsonValue

from mixgrpo.files.records import Count, Record, Seconds


class Attempt(Record):
    """One record in attempts/: what one job did to a run. Earlier versions recorded less."""

    number: Count
    pid: Count
    job_id: str | None = None
    """The scheduler's id of the job; ids are not unique over the life of a cluster."""
    started: Seconds
    """Seconds since the epoch, as `ended`."""
    ended: Seconds | None = None
    reason: str | None = None
    error: str | None = None
    """Why it failed: one line of message, or a traceback with the message last."""
    executor: str | None = None
    """inline, local or slurm: how the job was started."""
    sweep: str | None = None
    """The sweep that asked for it; several may share the run. Earlier versions recorded none."""
    host: str | None = None
    """The machine or node, to which `pid` belongs."""
    warnings: tuple[str, ...] = ()
    """The texts of the job's warnings, each once; the log has them with their locations."""
    restarts: Count | None = None
    """How often Slurm had requeued the job before."""
    began_at: Count = 0
    """Iterations of the newest checkpoint at its start."""
    evaluation_taken: bool = False
    """Whether the evaluation before training was made by another run."""
    gpus: float = Field(0.0, ge=0, lt=1e6)
    """The GPUs it occupied; a fraction where runs share one."""
    commit: str | None = None
    """The commit of the code that ran."""
    dirty: bool | None = None
    """Whether that code had been changed since."""
    made_on: dict[str, JsonValue] | None = None
    """What its bytes depend on beside the settings: code, versions, machine, processes."""
    log: str | None = None
    """Its log, as a path in the run's folder; None where the output went to the terminal."""

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
