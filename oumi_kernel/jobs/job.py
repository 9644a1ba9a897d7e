"""What a job is, whatever cluster it runs on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from oumi_kernel.errors import ConfigError

RESUME = "--training.try_resume_from_last_checkpoint"
"""Given where the cluster may start a job anew: it goes on from its last checkpoint."""
PORT = 29400
"""Where machines that a job has for itself meet."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_VOLUME = re.compile(r"([-a-z0-9]+):(/\S+)")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A run on machines of a cluster.

    Attributes:
        name: Its name: small letters, digits and dashes.
        config: The configuration, as it was named.
        file: Its file.
        folder: Where the job file was asked for.
        words: Further words for `oumi run`: keys, and components from local files.
        nodes: Machines.
        gpus: GPUs of each; 0 for a CPU.
        cpus: CPU cores of each.
        time: The longest that it may take, `HH:MM:SS` or `D-HH:MM:SS`; empty for the cluster's own limit.
        image: A container image with oumi-kernel; empty for none.
        volume: `NAME:/PATH` of storage that all machines share; empty for none.
        gpu_type: What a cloud calls the GPU, such as H100.
        partition: The partition of Slurm.
    """

    name: str
    config: str
    file: Path
    folder: Path
    words: tuple[str, ...] = ()
    nodes: int = 1
    gpus: int = 1
    cpus: int = 4
    time: str = ""
    image: str = ""
    volume: str = ""
    gpu_type: str = ""
    partition: str = ""

    def __post_init__(self) -> None:
        """Refuse what no cluster takes.

        Raises:
            ConfigError: A value is out of range or malformed.
        """
        if self.nodes < 1 or self.gpus < 0 or self.cpus < 1:
            raise ConfigError("--nodes and --cpus must be 1 or more, and --gpus 0 or more.")
        if not _NAME.fullmatch(self.name):
            message = f"--name must be of small letters, digits and dashes, at most 52, not '{self.name}'."
            raise ConfigError(message)
        if self.time and not _TIME.fullmatch(self.time):
            raise ConfigError(f"--time must be HH:MM:SS or DAYS-HH:MM:SS, not '{self.time}'.")
        if self.volume and not _VOLUME.fullmatch(self.volume):
            raise ConfigError(f"--volume must be NAME:/PATH, not '{self.volume}'.")

    @property
    def processes(self) -> int:
        """Processes of each machine: one for each GPU."""
        return max(1, self.gpus)

    @property
    def seconds(self) -> int:
        """The longest that it may take; 0 for no limit."""
        found = _TIME.fullmatch(self.time)
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0, 0)
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def mount(self) -> tuple[str, str]:
        """Name and path of the shared storage; both empty for none."""
        name, _, path = self.volume.partition(":")
        return name, path

    def refuse(self, cluster: str, **options: str) -> None:
        """Refuse options that a cluster has no use for.

        Raises:
            ConfigError: One has a value.
        """
        given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
        if given:
            raise ConfigError(f"{', '.join(given)}: there is no such thing on {cluster}. Leave it out.")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return a text, as a block where it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_of(document: dict[str, Any]) -> str:
    """Return a document as YAML, its keys in their order."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
