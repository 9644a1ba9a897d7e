"""The options of `oumi run` that say how many processes train, and how those of several machines meet."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from oumi_kernel.contracts import World
    from oumi_kernel.launch import Processes
    from oumi_kernel.launchers import Launcher

_DEVICES = ("/dev/nvidia1", "/dev/kfd")
"""There is a second GPU of NVIDIA, or some of AMD."""


@dataclass(frozen=True)
class Launch:
    """How many processes there are to be.

    Attributes:
        nproc: Processes on this machine: a number, or auto, one for each GPU.
        nnodes: Machines; start the same command on each.
        node_rank: Which of them this is, from 0.
        rdzv: host:port of machine 0, where they meet.
        max_restarts: How often all processes start anew, from the last complete checkpoint, after one failed.
    """

    nproc: Annotated[int | Literal["auto"], Parameter(show_default=False)] = "auto"
    nnodes: Annotated[int, Parameter(show_default=False)] = 1
    node_rank: Annotated[int, Parameter(show_default=False)] = 0
    rdzv: Annotated[str, Parameter(show_default=False)] = ""
    max_restarts: Annotated[int, Parameter(show_default=False)] = 0

    def start(self) -> tuple[Processes, World]:
        """Return the processes that are to be started, and the place of this one: it is a worker, or starts all.

        Raises:
            ConfigError: They cannot be.
        """
        from oumi_kernel.contracts import World
        from oumi_kernel.launch import Processes, world_from
        from oumi_kernel.launchers import launcher_of

        self._check()
        launcher = launcher_of()
        if launcher and not (launcher.starts_machines and self.nnodes > 1):
            self._refuse_beside(launcher)
            return Processes(per_node=1), world_from()
        processes = self._processes()
        return processes, World(size=processes.size, nodes=processes.nodes)

    def _check(self) -> None:
        from oumi_kernel.errors import ConfigError

        if self.nproc != "auto" and self.nproc < 1:
            raise ConfigError(f"--nproc must be 1 or more, or auto, not {self.nproc}.")
        if self.nnodes < 1 or not 0 <= self.node_rank < self.nnodes or self.max_restarts < 0:
            raise ConfigError("--nnodes must be 1 or more, --node-rank from 0 to one less, --max-restarts 0 or more.")
        if (self.nnodes > 1) != bool(self.rdzv):
            raise ConfigError("--nnodes above 1 and --rdzv HOST:PORT, where machine 0 is reached, go together.")
        host, _, port = self.rdzv.rpartition(":")
        if self.rdzv and not (host and port.isdecimal()):
            raise ConfigError(f"--rdzv must be HOST:PORT, such as node0:29400, not '{self.rdzv}'.")

    def _refuse_beside(self, launcher: Launcher) -> None:
        """Refuse options that would have no effect, as this process is one of those that a launcher started."""
        from oumi_kernel.errors import ConfigError
        from oumi_kernel.launch import LAUNCH

        if (
            self == ONE_PER_GPU or LAUNCH in os.environ
        ):  # `oumi run` gives its own words to the processes that it starts
            return
        hint = f"leave --nproc, --nnodes, --node-rank, --rdzv and --max-restarts out, or start without {launcher.name}"
        if launcher.starts_machines:
            hint += "; where it started one task on each machine, give --nnodes, --node-rank and --rdzv, too"
        raise ConfigError(
            f"{launcher.name} started this process, one of several, and decides how many there are: {hint}."
        )

    def _processes(self) -> Processes:
        from oumi_kernel.errors import ConfigError
        from oumi_kernel.launch import Processes
        from oumi_kernel.launchers import pod_of

        pod = pod_of()
        per_node = pod.per_node if pod and self.nproc == "auto" else str(self.nproc)
        nodes, node_rank, rendezvous = self.nnodes, self.node_rank, self.rdzv
        if pod and nodes == 1 and pod.nodes != "1":
            try:
                nodes, node_rank, rendezvous = int(pod.nodes), int(pod.node_rank), pod.rendezvous
            except ValueError as error:
                message = f"PET_NNODES and PET_NODE_RANK in the environment must be whole numbers: {error}."
                raise ConfigError(message) from error
        return Processes(
            per_node=int(per_node) if per_node.isdecimal() else _gpus(),
            nodes=nodes,
            node_rank=node_rank,
            rendezvous=rendezvous,
            max_restarts=self.max_restarts,
        )


ONE_PER_GPU = Launch()


def _gpus() -> int:
    """Return the GPUs that torch sees, 1 at least; it is asked only where there may be several, as that takes time."""
    if sys.platform == "darwin" or (sys.platform == "linux" and not any(Path(d).exists() for d in _DEVICES)):
        return 1
    from oumi_kernel.cli.env import gpus

    return max(1, gpus())
