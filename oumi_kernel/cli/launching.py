"""The options of `oumi run` that say how many processes train, and how those of several machines meet."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from oumi_kernel.launch import Processes

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

    def processes(self) -> Processes:
        """Return the processes that are asked for.

        Raises:
            ConfigError: They cannot be.
        """
        from oumi_kernel.errors import ConfigError
        from oumi_kernel.launch import Processes

        if self.nproc != "auto" and self.nproc < 1:
            raise ConfigError(f"--nproc must be 1 or more, or auto, not {self.nproc}.")
        if self.nnodes < 1 or not 0 <= self.node_rank < self.nnodes or self.max_restarts < 0:
            raise ConfigError("--nnodes must be 1 or more, --node-rank from 0 to one less, --max-restarts 0 or more.")
        if (self.nnodes > 1) != bool(self.rdzv):
            raise ConfigError("--nnodes above 1 and --rdzv HOST:PORT, where machine 0 is reached, go together.")
        return Processes(
            per_node=_gpus() if self.nproc == "auto" else self.nproc,
            nodes=self.nnodes,
            node_rank=self.node_rank,
            rendezvous=self.rdzv,
            max_restarts=self.max_restarts,
        )


ONE_PER_GPU = Launch()


def _gpus() -> int:
    """Return the GPUs that torch sees, 1 at least; it is asked only where there may be several, as that takes time."""
    if sys.platform == "darwin" or (sys.platform == "linux" and not any(Path(d).exists() for d in _DEVICES)):
        return 1
    from oumi_kernel.cli.env import gpus

    return max(1, gpus())
