"""`oumi launch script`: a job file for a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from oumi_kernel.loading import Override


@dataclass(frozen=True)
class Wanted:
    """What the job is to have.

    Attributes:
        nodes: Machines, 1 unless given.
        gpus: GPUs of each, 1 unless given; 0 for a CPU.
        cpus: CPU cores of each, 4 for each GPU unless given.
        time: The longest that it may take: HH:MM:SS or DAYS-HH:MM:SS.
        image: A container image with oumi-kernel.
        volume: Storage that all machines share: NAME:/PATH (SkyPilot, Kubernetes).
        gpu_type: What the cloud calls the GPU, such as H100 (SkyPilot).
        partition: The partition (Slurm).
        name: The job's name, that of the configuration's folder or file unless given.
        output: The file to write; without it, the job is printed.
    """

    nodes: Annotated[int, Parameter(show_default=False)] = 1
    gpus: Annotated[int, Parameter(show_default=False)] = 1
    cpus: Annotated[int | None, Parameter(show_default=False)] = None
    time: Annotated[str, Parameter(show_default=False)] = ""
    image: Annotated[str, Parameter(show_default=False)] = ""
    volume: Annotated[str, Parameter(show_default=False)] = ""
    gpu_type: Annotated[str, Parameter(show_default=False)] = ""
    partition: Annotated[str, Parameter(show_default=False)] = ""
    name: Annotated[str, Parameter(show_default=False)] = ""
    output: Annotated[Path | None, Parameter(show_default=False)] = None


DEFAULT = Wanted()


def script(
    cluster: Literal["slurm", "skypilot", "kubernetes"],
    config: str,
    /,
    *,
    plugin: Annotated[Sequence[str], Parameter(show_default=False)] = (),
    wanted: Annotated[Wanted, Parameter(name="*")] = DEFAULT,
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> None:
    """Write a job file that a cluster takes as it is. The configuration is checked first.

    Args:
        cluster: slurm (for sbatch), skypilot (for sky launch) or kubernetes (for kubectl apply).
        config: A YAML file, or the name of a shipped configuration.
        plugin: A dataset or metric from a local file: ./my_metric.py:bleu. May be repeated.
        wanted: What the job is to have.
        overrides: Keys given on the command line; the job gives them to oumi run.

    Raises:
        ConfigError: The configuration is wrong, or an option is missing or has no meaning there.
    """
    from importlib import import_module

    from oumi_kernel.cli.configuration import open_sound_config
    from oumi_kernel.jobs.job import Job
    from oumi_kernel.shipped import find_config

    open_sound_config(config, overrides, plugin)
    file = find_config(config)
    job = Job(
        name=wanted.name or _name_of(file),
        config=config,
        file=file,
        folder=Path.cwd(),
        words=(*(word for name in plugin for word in ("--plugin", name)), *map(_word, overrides)),
        nodes=wanted.nodes,
        gpus=wanted.gpus,
        cpus=wanted.cpus if wanted.cpus is not None else 4 * max(1, wanted.gpus),
        time=wanted.time,
        image=wanted.image,
        volume=wanted.volume,
        gpu_type=wanted.gpu_type,
        partition=wanted.partition,
    )
    text = import_module(f"oumi_kernel.jobs.{cluster}").script(job)
    if wanted.output is None:
        sys.stdout.write(text)
    else:
        wanted.output.write_text(text, encoding="utf-8")


def _name_of(file: Path) -> str:
    """Return a job's name: that of the folder of a `train.yaml`, else of the file."""
    name = file.absolute().parent.name if file.stem == "train" else file.stem
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:52] or "oumi"


def _word(override: Override) -> str:
    """Return a key as one word for `oumi run`."""
    if override.text is None:
        return f"--{'no-' if override.negated else ''}{override.path}"
    return f"--{override.path}={override.text}"
