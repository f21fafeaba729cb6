"""A SLURM cluster of one node, in a folder of its own: munged, slurmctld and slurmd of Debian's packages. For root.

Nothing of the machine's own configuration is read or written, and all daemons end with the block.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

CONF = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
KillWait=2
MinJobAge=300
SlurmdTimeout=5
SlurmdParameters=config_overrides
SlurmctldTimeout=10
ReturnToService=2
MpiDefault=none
NodeName={host} CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=gpu Nodes={host} Default=YES MaxTime=INFINITE OverTimeLimit=0 PriorityTier=1 State=UP
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


class Cluster:
    """The daemons and their folder."""

    def __init__(self, folder: Path, cpus: int = 2, memory_mb: int = 512_000) -> None:  # said, not had
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.conf = folder / "slurm.conf"
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        paths = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf), "PATH": paths}
        srun = folder / "bin" / "srun"  # Snakemake's plug-in takes every variable SLURM_* from its jobs
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        ports = free_ports(2)
        settings = {"host": self.host, "port": ports[0], "node_port": ports[1], "cpus": cpus, "memory": memory_mb}
        self.conf.write_text(CONF.format(folder=folder, **settings))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self.start("munged", "--foreground", "--force", f"--key-file={key}", *options)
        until(lambda: (self.folder / "munge.socket").exists())
        self.start("slurmctld", "-D", "-i")
        self.start_node()

    def __exit__(self, *failure: object) -> None:
        self.call("scancel", "--user=root", "--signal=KILL", check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self.daemons:
                self.stop(name)

    def start(self, name: str, *arguments: str) -> None:
        """Start a daemon in the foreground, as a child of this process."""
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [name, *arguments], env=self.environment, stdout=output, stderr=output, cwd=self.folder
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        self.daemons[name].send_signal(how)
        self.daemons[name].wait(timeout=60)

    def start_node(self) -> None:
        """Start slurmd and wait until jobs can run."""
        self.start("slurmd", "-D", "-N", self.host)
        until(lambda: self.node() == "idle")

    def lose_node(self) -> None:
        """What a power cut does: kill slurmd, what it started, and the jobs."""
        pids = [line.split()[0] for line in self.call("scontrol", "listpids").splitlines()[1:]]
        mine = f"SLURM_CONF={self.conf}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "comm").read_text() == "slurmstepd\n" and mine in (process / "environ").read_bytes():
                    pids.append(process.name)
        self.stop("slurmd", signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def call(self, *command: str, check: bool = True) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, check=check
        )
        return done.stdout

    def node(self) -> str:
        return self.call("sinfo", "--noheader", "--format=%T", "--partition=gpu", check=False).strip().rstrip("*$~#")

    def jobs(self, *states: str) -> list[str]:
        """Ids of the jobs in some states (RUNNING, PENDING, ...)."""
        return self.call("squeue", "--noheader", "--format=%i", f"--states={','.join(states)}").split()

    def asked(self, job: str) -> list[str]:
        """Memory, time and state of a job, ended or not."""
        return self.call("squeue", "--states=all", "--noheader", "--format=%m %l %T", f"--jobs={job}").split()


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
