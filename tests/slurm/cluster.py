"""A throw-away Slurm of several nodes on one machine, as root, without systemd or cgroups.

The daemons are real; the nodes' CPUs, memory and GPUs are made up. Standard library only, so that
it runs before the project is installed:

    python3 -m tests.slurm.cluster install
    python3 -m tests.slurm.cluster up ROOT [--nodes 4] [--max-array-size 1001] [--no-accounting]
    eval "$(python3 -m tests.slurm.cluster env ROOT)"
    python3 -m tests.slurm.cluster down ROOT
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from . import configuration, hosts, packages, processes

CLIENTS = [
    "sacct",
    "sacctmgr",
    "salloc",
    "sbatch",
    "scancel",
    "scontrol",
    "sinfo",
    "squeue",
    "srun",
]
SETTINGS = ["node_count", "max_array_size", "accounting", "port", "first_job_id"]
REPOSITORY = Path(__file__).parents[2]
_NUMBERS_LOST = 16
"""More jobs than any test starts in the 5 s before its controller loses them."""


class Job(NamedTuple):
    """A row of squeue; `id` is `17` or, for a task of an array, `17_3`."""

    id: str
    name: str
    state: str
    nodes: str
    reason: str
    partition: str


@dataclass
class Cluster:
    """A Slurm under the folder `root`; nothing runs before `up()`.

    Partitions are `gpu` (the default; its jobs can be preempted) and `high` (preempts them). Each
    node has 8 CPUs, 64 GB, 4 GPUs and 16 shards. Without `accounting`, sacct has no answer.
    """

    root: Path
    node_count: int = 4
    max_array_size: int = 1001
    accounting: bool = True
    port: int = 0
    # Never a number twice: programs keep files by job number.
    first_job_id: int = field(default_factory=lambda: random.randrange(1000, 60_000_000))
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)
    _user_signal: bool = True
    _forgetful: bool = False
    """Whether the controller has lost numbers that it had given to jobs."""

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, which also resolve as hosts."""
        return [f"n{i + 1}" for i in range(self.node_count)]

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster must have in its environment."""
        path = os.environ.get("PATH", packages.SEARCH_PATH)
        own = str(self.root / "bin")
        path = path if path.startswith(f"{own}:") else f"{own}:{path}"
        return {"SLURM_CONF": str(self.root / "etc/slurm.conf"), "PATH": path}

    def up(self, owner: int | None = None) -> None:
        """Start everything and return when all nodes are idle.

        With `owner`, a process, the cluster ends by itself when that process has ended, however
        it ended. Whatever goes wrong here, nothing is left running.
        """
        try:
            self.port = self.port or _free_ports(3 + self.node_count)
            self._write_files()
            if owner is not None:
                self._start("guard", _command("guard", str(self.root), str(owner)))
            hosts.add_line(self.root, self.nodes)
            self._start_munge()
            if self.accounting:
                self._start_database()
            self._start("slurmctld", ["slurmctld", "-D", "-c"])
            for node in self.nodes:
                self.start_node_daemon(node)
            self.wait_idle()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End the jobs, then exactly the daemons that `up` started; also after half an `up`."""
        for node in self.nodes:
            self.power_off(node)
        for daemon in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._kill(daemon)
        hosts.remove_line(self.root)
        shutil.rmtree(self.root / "mysql", ignore_errors=True)
        # Last: a second Ctrl-C in here leaves the rest to it.
        self._kill("guard")

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a client to its end and return what it printed; RuntimeError where it failed."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
        return done.stdout.strip()

    def jobs(self) -> list[Job]:
        """What squeue shows: jobs waiting, running or ending; each task of an array by itself."""
        rows = self.run("squeue", "--noheader", "--array", "--format=%i|%j|%T|%N|%r|%P")
        return [Job(*row.split("|")) for row in rows.splitlines()]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` knows of a job or of one task (`17_3`), ended ones as well."""
        row = self.run("scontrol", "--oneliner", "show", "job", job_id).splitlines()[0]
        return dict(word.partition("=")[::2] for word in row.split() if "=" in word)

    def node_states(self) -> dict[str, str]:
        """The state of each node in lower case, e.g. `idle`, `mixed`, `down*`."""
        rows = self.run("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N %T")
        return dict(row.split() for row in rows.splitlines())

    def wait(self, true: Callable[[], object], what: str, seconds: float = 30) -> None:
        """Return when `true()` is; TimeoutError that says `what` was waited for."""
        limit = time.monotonic() + seconds
        while not true():
            if time.monotonic() > limit:
                raise TimeoutError(f"waited {seconds:g} s in vain: {what} (logs: {self.root}/log)")
            time.sleep(0.05)

    def wait_idle(self, seconds: float = 60) -> None:
        """Return when no job is left and every node is idle."""

        def idle() -> bool:
            try:
                return not self.jobs() and set(self.node_states().values()) == {"idle"}
            except RuntimeError:  # the controller does not listen yet
                return False

        self.wait(idle, "no jobs and all nodes idle", seconds)

    def reset(self) -> None:
        """Undo every fault, cancel every job, and return when the nodes are idle."""
        for node in self.nodes:
            self.skew(node, 0)
        if not self._running("slurmctld"):
            self.start_controller()
        self.run("scancel", "--user=root")
        for node in self.nodes:
            if not self._running(f"slurmd-{node}"):
                self.start_node_daemon(node)
        self.preempt_with_signal(True)
        for node in self.nodes:
            self.resume(node)
        self.wait_idle()
        if self._forgetful:
            self._pass_numbers()

    def _pass_numbers(self) -> None:
        """Pass over the numbers that were given twice: a node drains on one it has seen."""
        for _ in range(_NUMBERS_LOST):
            self.run("sbatch", "--hold", "--output=/dev/null", "--wrap=true")
        self.run("scancel", "--user=root")
        self._forgetful = False
        self.wait_idle()

    # --- faults

    def kill_controller(self, saved: bool = True) -> None:
        """SIGKILL slurmctld; running jobs go on, clients wait 10 s for it and then fail.

        It writes its queue down up to 5 s after a change. With `saved` that is waited for; without,
        jobs just submitted may be lost, and ended once it is back, as on a real cluster.
        """
        if saved:
            time.sleep(6)
        else:
            self._forgetful = True
        self._kill("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld with the queue it had, and return when it answers."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self.wait(lambda: self._answers("scontrol", "ping"), "the controller's answer")

    def kill_node_daemon(self, node: str) -> None:
        """SIGKILL slurmd. The node's steps and tasks live on, also when their job was requeued."""
        self._kill(f"slurmd-{node}")

    def power_off(self, node: str) -> None:
        """SIGKILL slurmd, the steps and all tasks of a node, as when it lost power."""
        self._kill(f"slurmd-{node}")
        processes.kill_node(
            self.root / f"log/slurmd-{node}.log",
            {
                f"SLURM_CLUSTER_NAME={configuration.cluster_name(self.port)}".encode(),
                f"SLURMD_NODENAME={node}".encode(),
            },
        )

    def start_node_daemon(self, node: str) -> None:
        """Start a node's slurmd; a node that did not respond comes back by itself."""
        self._start(f"slurmd-{node}", ["slurmd", "-D", "-N", node])

    def set_down(self, node: str) -> None:
        """As an administrator: end and requeue a node's jobs, take none until `resume`."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume(self, node: str) -> None:
        """Take a node that is down or drained back into service; others are left alone."""

        def in_service() -> bool:
            if not self.node_states()[node].startswith(("down", "drain")):
                return True
            # Refused where the node came back by itself in between.
            self._answers("scontrol", "update", f"nodename={node}", "state=resume")
            return False

        self.wait(in_service, f"{node} in service")

    def preempt_with_signal(self, user_signal: bool) -> None:
        """Whether a preempted job's steps get the signal it asked for, or SIGTERM.

        Ten seconds later (GraceTime) the job is ended and requeued.
        """
        if user_signal != self._user_signal:
            self._user_signal = user_signal
            self._write_slurm_conf()
            self.run("scontrol", "reconfigure")

    def skew(self, node: str, seconds: int) -> None:
        """Let tasks that start on a node from now on see a clock `seconds` ahead; 0 ends it.

        Only the clock of the day: monotonic clocks and the times of files stay true.
        """
        clock = self.root / "skew" / node
        if not seconds:
            clock.unlink(missing_ok=True)
            return
        library = self.root / "bin/clock.so"
        clock.write_text(f"export LD_PRELOAD={library}\nexport CLOCK_SHIFT={seconds}\n")

    # --- how it is done

    def _write_files(self) -> None:
        # An earlier cluster in this folder is no part of this one.
        for name in ("state", "spool", "mysql"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("etc", "bin", "state", "spool", "log", "run", "dev", "munge", "skew"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            (self.root / "spool" / node).mkdir(exist_ok=True)
        # munged refuses a key that others can read, and a socket below a folder they can write.
        self.root.chmod(0o755)
        (self.root / "munge").chmod(0o700)
        _write(self.root / "munge/munge.key", os.urandom(1024), 0o400)
        for gpu in range(configuration.GPUS):
            device = self.root / f"dev/nvidia{gpu}"
            if not device.exists():
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self._write_slurm_conf()
        daemons = configuration.DAEMONS.format(root=self.root)
        _write(self.root / "etc/daemons.conf", daemons.encode(), 0o644)
        gres = configuration.gres_conf(self.root, self.node_count)
        _write(self.root / "etc/gres.conf", gres.encode(), 0o644)
        _write(self.root / "etc/cgroup.conf", b"CgroupPlugin=cgroup/v1\n", 0o644)
        if self.accounting:
            text = configuration.slurmdbd_conf(self.root, self.port)
            _write(self.root / "etc/slurmdbd.conf", text.encode(), 0o600)
        prolog = configuration.TASK_PROLOG.format(root=self.root)
        _write(self.root / "bin/task_prolog", prolog.encode(), 0o755)
        for client in CLIENTS:
            program = shutil.which(client, path=packages.SEARCH_PATH)
            text = configuration.CLIENT.format(root=self.root, program=program)
            _write(self.root / "bin" / client, text.encode(), 0o755)
        shift = [str(Path(__file__).with_name("clock.c")), "-o", str(self.root / "bin/clock.so")]
        self.run("gcc", "-shared", "-fPIC", *shift)
        settings = {name: getattr(self, name) for name in SETTINGS}
        _write(self.root / "cluster.json", json.dumps(settings).encode(), 0o644)

    def _write_slurm_conf(self) -> None:
        text = configuration.slurm_conf(
            self.root,
            self.port,
            self.node_count,
            self.max_array_size,
            self.accounting,
            self.first_job_id,
            self._user_signal,
        )
        _write(self.root / "etc/slurm.conf", text.encode(), 0o644)

    def _start_munge(self) -> None:
        key, run = self.root / "munge", self.root / "run"
        self._start(
            "munged",
            [
                *("munged", "--foreground", "--force", "--num-threads=2"),
                *(f"--key-file={key}/munge.key", f"--seed-file={key}/munged.seed"),
                *(f"--socket={run}/munge.socket", f"--pid-file={run}/munged.own"),
                f"--log-file={self.root}/log/munged.log",
            ],
        )
        self.wait((run / "munge.socket").exists, "munged's socket")

    def _start_database(self) -> None:
        data, sock = self.root / "mysql", self.root / "run/mysql.sock"
        own = ["--no-defaults", "--user=root", f"--datadir={data}"]
        install = ["mariadb-install-db", "--auth-root-authentication-method=normal"]
        self.run(install[0], *own, install[1], "--skip-test-db")
        self._start(
            "mariadbd",
            [
                *("mariadbd", *own, f"--socket={sock}", f"--pid-file={self.root}/run/mariadbd.own"),
                *("--bind-address=127.0.0.1", f"--port={self.port + 2}"),
                *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
                *("--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=16M"),
            ],
        )
        sql = ("mariadb", "--no-defaults", "--user=root", f"--socket={sock}", "--execute")
        self.wait(lambda: self._answers(*sql, "select 1"), "the database's answer")
        self.run(
            *sql,
            "create database slurm_acct_db;"
            "create user 'slurm'@'127.0.0.1' identified by 'slurm';"
            "create user 'slurm'@'localhost' identified by 'slurm';"
            "grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
            "grant all on slurm_acct_db.* to 'slurm'@'localhost';",
        )
        self._start("slurmdbd", ["slurmdbd", "-D"])
        self.wait(lambda: self._answers("sacctmgr", "-n", "show", "cluster"), "slurmdbd's answer")

    def _answers(self, *command: str) -> bool:
        try:
            self.run(*command)
        except RuntimeError:
            return False
        return True

    def _pid_file(self, name: str) -> Path:
        return self.root / "run" / f"{name}.pid"

    def _running(self, name: str) -> bool:
        return processes.recorded(self._pid_file(name)) is not None

    def _start(self, name: str, command: list[str]) -> None:
        if self._running(name):
            raise RuntimeError(f"{name} runs already")
        with (self.root / f"log/{name}.err").open("ab") as errors:
            self._children[name] = subprocess.Popen(
                command,
                env={
                    "PATH": packages.SEARCH_PATH,
                    "SLURM_CONF": str(self.root / "etc/daemons.conf"),
                },
                cwd=REPOSITORY if name == "guard" else self.root / "log",
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                # A Ctrl-C in the terminal is for the tests alone.
                start_new_session=True,
            )
        processes.record(self._pid_file(name), self._children[name].pid)

    def _kill(self, name: str) -> None:
        pid = processes.recorded(self._pid_file(name))
        if pid is not None and pid != os.getpid():
            processes.kill({pid})
        self._pid_file(name).unlink(missing_ok=True)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait()


def load(root: Path) -> Cluster:
    """The cluster that another process started under `root`."""
    settings = json.loads((root / "cluster.json").read_text())
    return Cluster(root, **settings)


def guard(root: Path, owner: int) -> None:
    """Wait for the end of the process `owner`, then end the cluster that it left behind."""
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        pass
    else:
        select.select([descriptor], [], [])
    load(root).down()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.slurm.cluster", *arguments]


def _write(file: Path, content: bytes, mode: int) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(content)
    file.chmod(mode)


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that connections get."""
    for _ in range(100):
        first = random.randrange(10_000, 32_000 - count)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + i))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise RuntimeError(f"no {count} free ports in a row")


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.slurm.cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install")
    for name in ("up", "env", "down", "guard"):
        command = commands.add_parser(name)
        command.add_argument("root", type=lambda text: Path(text).resolve())
        if name == "up":
            command.add_argument("--nodes", type=int, default=4)
            command.add_argument("--max-array-size", type=int, default=1001)
            command.add_argument("--no-accounting", action="store_true")
        if name == "guard":
            command.add_argument("owner", type=int)
    given = parser.parse_args()
    if given.command == "install":
        packages.install()
    elif given.command == "up":
        Cluster(given.root, given.nodes, given.max_array_size, not given.no_accounting).up()
    elif given.command == "env":
        for key, value in load(given.root).environment.items():
            print(f"export {key}='{value}'")
    elif given.command == "down":
        load(given.root).down()
    else:
        guard(given.root, given.owner)


if __name__ == "__main__":
    main()
