"""A task for SkyPilot: the current folder travels with it, and each machine starts the processes of its GPUs."""

from __future__ import annotations

import os
import shlex
from typing import Any

from oumi_kernel.errors import ConfigError
from oumi_kernel.jobs.job import PORT, RESUME, Job, yaml_of


def script(job: Job) -> str:
    """Return the task.

    Raises:
        ConfigError: An option is missing or has no meaning here, or the configuration would not travel.
    """
    job.refuse("SkyPilot", partition=job.partition)
    if job.gpus and not job.gpu_type:
        raise ConfigError("--gpu-type is missing: what the cloud calls the GPU, such as H100; --gpus 0 for a CPU.")
    volume, path = job.mount
    if job.nodes > 1 and not volume:
        raise ConfigError(
            "several machines need a folder that all share: --volume NAME:/PATH ('sky volumes' makes one)."
        )
    resources: dict[str, Any] = {"cpus": f"{job.cpus}+"}
    if job.gpus:
        resources["accelerators"] = f"{job.gpu_type}:{job.gpus}"
    if job.image:
        resources["image_id"] = f"docker:{job.image}"
    task: dict[str, Any] = {"name": job.name, "workdir": ".", "num_nodes": job.nodes, "resources": resources}
    if volume:
        task["volumes"] = {path: volume}
    if not job.image:
        task["setup"] = "pip install 'oumi-kernel[all]'\n"
    return yaml_of(task | {"run": _run(job, path)})


def _run(job: Job, path: str) -> str:
    words = ["oumi", "run", _travelling(job), *job.words, RESUME, "--nproc", str(job.processes)]
    if path:
        words.append(f"--training.output_dir={path}/{job.name}")
    if job.seconds:  # asked to stop, it leaves a checkpoint
        words = ["timeout", "--preserve-status", str(job.seconds), *words]
    if job.nodes == 1:
        return f"{shlex.join(words)}\n"
    machines = f'--nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" --rdzv "$host:{PORT}"'
    return f'host=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n{shlex.join(words)} {machines}\n'


def _travelling(job: Job) -> str:
    """Return the configuration as it is called on the machine: a shipped one by its name, else within the folder."""
    if not os.path.exists(job.config):  # noqa: PTH110 - a name, not a path
        return job.config
    file, folder = job.file.resolve(), job.folder.resolve()
    if not file.is_relative_to(folder):
        raise ConfigError(
            f"{job.config} is not within {job.folder}, which is what SkyPilot takes along: go there first."
        )
    return str(file.relative_to(folder))
