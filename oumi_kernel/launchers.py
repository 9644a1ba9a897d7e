"""Who started this process, as one of several: what torchrun, Slurm, an MPI or Kubernetes leave in the environment.

A launcher counts only where its variables say that it started several processes: a shell in an allocation, or a step
of a single task, is no process of a run.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from oumi_kernel.errors import ConfigError

Environment = Mapping[str, str]
PORTS = range(20000, 30000)
"""Where processes meet if nobody says so: below the ports that systems give out by themselves."""
_PART = re.compile(r"([^\[,]*)(?:\[([^\]]*)\])?")
"""A part of a name in Slurm's notation, and the numbers that stand for what follows it."""


class Launcher(msgspec.Struct, frozen=True, kw_only=True):
    """A program that starts processes, and the variables in which it says which one this is.

    Attributes:
        name: What a user calls it.
        rank: The variable of the rank.
        size: Of the number of processes.
        local_rank: Of the rank on this machine.
        job: What tells one job from another, so that each has a port of its own.
        unless: A variable that says that these are not processes of a run.
        starts_machines: Whether it may start one process on each machine, which then starts those of the run.
    """

    name: str
    rank: str
    size: str
    local_rank: str
    job: tuple[str, ...] = ()
    unless: str = ""
    starts_machines: bool = True

    def started(self, environment: Environment) -> bool:
        """Return whether this launcher started the process, as one of several."""
        there = {self.rank, self.size, self.local_rank} <= environment.keys() and self.unless not in environment
        return there and environment[self.size] != "1"


TORCH = Launcher(name="torchrun", rank="RANK", size="WORLD_SIZE", local_rank="LOCAL_RANK", starts_machines=False)
"""Also accelerate, `oumi run` itself, and whoever sets these variables."""

LAUNCHERS = (
    # an MPI that was started in an allocation of Slurm knows more than Slurm, which started one helper a machine
    Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        job=("PMIX_NAMESPACE",),
    ),
    Launcher(name="PALS", rank="PALS_RANKID", size="PMI_SIZE", local_rank="PALS_LOCAL_RANKID", job=("PALS_APID",)),
    Launcher(name="mpiexec", rank="PMI_RANK", size="PMI_SIZE", local_rank="MPI_LOCALRANKID", job=("PBS_JOBID",)),
    Launcher(
        name="Slurm",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",  # set in steps alone, where SLURM_NTASKS is set in the job's script, too
        local_rank="SLURM_LOCALID",
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        unless="SLURM_PTY_PORT",  # a shell
    ),
)


def launcher_of(environment: Environment = os.environ) -> Launcher | None:
    """Return who started this process as one of several; None if it was started alone."""
    if _is_pod(environment):
        return None
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return TORCH
    return next((launcher for launcher in LAUNCHERS if launcher.started(environment)), None)


def meeting_point(environment: Environment = os.environ) -> tuple[str, int]:
    """Return host and port where the processes meet: those of MASTER_ADDR and MASTER_PORT, or the job's own.

    Raises:
        ConfigError: The environment does not say where.
    """
    host = environment.get("MASTER_ADDR") or _first_host(environment)
    port = environment.get("MASTER_PORT") or _port_of_job(environment)
    if not host or not port.isdecimal():
        launcher = launcher_of(environment)
        missing = "MASTER_PORT" if host else "MASTER_ADDR"
        raise ConfigError(
            f"{launcher.name if launcher else 'a launcher'} started several processes, and {missing} is not set: set "
            "MASTER_ADDR to the first machine and MASTER_PORT to a free port there, or start with oumi run --nproc N."
        )
    return host, int(port)


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """What a PyTorchJob of Kubernetes says to `torchrun`, or to us, in each of its pods."""

    per_node: str
    nodes: str
    node_rank: str
    rendezvous: str


def pod_of(environment: Environment = os.environ) -> Pod | None:
    """Return what a PyTorchJob asks of whoever starts the processes of this pod; None outside of one.

    There RANK is the pod's number, not that of a process.
    """
    if not _is_pod(environment):
        return None
    host, port = (environment.get(f"PET_MASTER_{part}", "") for part in ("ADDR", "PORT"))
    return Pod(
        per_node=environment["PET_NPROC_PER_NODE"],
        nodes=environment.get("PET_NNODES", "1"),
        node_rank=environment.get("PET_NODE_RANK", "0"),
        rendezvous=f"{host}:{port}" if host else "",
    )


def _is_pod(environment: Environment) -> bool:
    return "PET_NPROC_PER_NODE" in environment and "LOCAL_RANK" not in environment


def _first_host(environment: Environment) -> str:
    """Return the machine of the first process, as the batch system names it; empty if none does."""
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if hosts:
        return first_of_slurm(hosts)
    file = environment.get("PBS_NODEFILE")
    if file and Path(file).is_file():
        return Path(file).read_text().split()[0]
    sizes = {"OMPI_COMM_WORLD_LOCAL_SIZE": "OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS": "PMI_SIZE"}
    on_one = any(here in environment and environment[here] == environment.get(all_) for here, all_ in sizes.items())
    return "localhost" if on_one else ""


def first_of_slurm(hosts: str) -> str:
    """Return the first of a list of hosts in Slurm's notation, such as `node[03-05,9],other`."""
    name = ""
    for part in _PART.finditer(hosts):  # a name may have several ranges: rack[1-2]n[0-3]
        name += part[1] + re.split("[-,]", part[2] or "")[0]
        if hosts[part.end() : part.end() + 1] in {"", ","}:
            break
    return name


def _port_of_job(environment: Environment) -> str:
    """Return a port that follows from the job, the same in all its processes; empty where no job is named."""
    launcher = launcher_of(environment)
    job = ".".join(environment.get(name, "") for name in launcher.job) if launcher else ""
    return str(PORTS[zlib.crc32(job.encode()) % len(PORTS)]) if job.strip(".") else ""
