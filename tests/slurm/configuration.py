"""The configuration files of a throw-away Slurm: several nodes on one machine, loopback only."""

from __future__ import annotations

from pathlib import Path

CPUS, MEMORY_MB, GPUS, SHARDS_PER_GPU = 8, 64_000, 4, 4

SLURM = """\
ClusterName={name}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again.
AuthInfo=socket={root}/run/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.own
SlurmdPidFile={root}/run/slurmd-%n.own
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={root}/bin/task_prolog
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
# Without cgroups it is the sampler that ends a job above its memory.
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none
ReturnToService=1
SlurmdParameters=config_overrides
LaunchParameters=enable_nss_slurm
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
DefMemPerCPU={memory_per_cpu}
GresTypes=gpu,shard
JobRequeue=1
MaxArraySize={max_array_size}
FirstJobId={first_job_id}
KillWait=3
MinJobAge=300
SlurmctldTimeout=30
SlurmdTimeout=5
InactiveLimit=0
Waittime=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preemption}
{accounting}
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port={node_ports} CPUs={cpus} \
RealMemory={memory} Gres=gpu:{gpus},shard:{shards} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 PriorityTier=1 \
PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""

# A dead node is noticed after 5 s and twice this long. Clients keep the default of 10 s: on a busy
# machine their calls may take longer than the daemons'.
DAEMONS = """\
Include {root}/etc/slurm.conf
MessageTimeout=2
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/run/munge.socket
AccountingStorageTRES=gres/gpu"""

USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"

SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
DebugLevel=info
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.own
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""

GRES = """\
NodeName=n[1-{nodes}] Name=gpu File={root}/dev/nvidia[0-{last_gpu}]
NodeName=n[1-{nodes}] Name=shard Count={shards}
"""

# What it prints changes the task's environment. A task may inherit another node's skewed clock from
# the srun that started it, so the other nodes take it back.
TASK_PROLOG = """\
#!/bin/sh
clock={root}/skew/$SLURMD_NODENAME
if [ -s "$clock" ]; then cat "$clock"
elif [ -n "$CLOCK_SHIFT" ]; then printf 'unset LD_PRELOAD\\nunset CLOCK_SHIFT\\n'
fi
"""

# Programs that strip SLURM_* from the environment find the cluster all the same.
CLIENT = """\
#!/bin/sh
SLURM_CONF={root}/etc/slurm.conf exec {program} "$@"
"""


def slurm_conf(
    root: Path,
    port: int,
    nodes: int,
    max_array_size: int,
    accounting: bool,
    first_job_id: int,
    preempt_send_user_signal: bool,
) -> str:
    """The text of slurm.conf; of the ports from `port` on, 3 + `nodes` are taken."""
    return SLURM.format(
        name=cluster_name(port),
        root=root,
        port=port,
        nodes=nodes,
        node_ports=f"[{port + 3}-{port + 2 + nodes}]",
        cpus=CPUS,
        memory=MEMORY_MB,
        memory_per_cpu=MEMORY_MB // CPUS,
        gpus=GPUS,
        shards=GPUS * SHARDS_PER_GPU,
        max_array_size=max_array_size,
        first_job_id=first_job_id,
        preemption=USER_SIGNAL if preempt_send_user_signal else "",
        accounting=ACCOUNTING.format(root=root, port=port + 1) if accounting else NO_ACCOUNTING,
    )


def cluster_name(port: int) -> str:
    """A name that no other cluster alive on this machine has."""
    return f"tests{port}"


def slurmdbd_conf(root: Path, port: int) -> str:
    """The text of slurmdbd.conf."""
    return SLURMDBD.format(root=root, port=port + 1, database_port=port + 2)


def gres_conf(root: Path, nodes: int) -> str:
    """The text of gres.conf: the device files must be character devices to count as GPUs."""
    return GRES.format(root=root, nodes=nodes, last_gpu=GPUS - 1, shards=GPUS * SHARDS_PER_GPU)
