"""A script for Slurm's sbatch: one task on each machine, which starts the processes of its GPUs."""

from __future__ import annotations

import shlex
import sys

from oumi_kernel.jobs.job import RESUME, Job

WARNING_SECONDS = 120
"""How long before the end of its time a job is asked to stop, so that it leaves a checkpoint."""


def script(job: Job) -> str:
    """Return the script. It runs in the folder where it was written, with this Python or in a container.

    Raises:
        ConfigError: An option has no meaning here.
    """
    job.refuse("Slurm", volume=job.volume, gpu_type=job.gpu_type)
    options = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "gpus-per-node": job.gpus or "",
        "partition": job.partition,
        "time": job.time,
        "chdir": job.folder,
        "output": f"{job.name}-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{WARNING_SECONDS}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    return "\n".join(("#!/bin/bash", *lines, "#SBATCH --requeue", "", "set -euo pipefail", "", *_body(job), ""))


def _body(job: Job) -> list[str]:
    srun = ["srun", "--kill-on-bad-exit=1", f"--cpus-per-task={job.cpus}"]
    program = ["oumi"] if job.image else [sys.executable, "-m", "oumi_kernel"]
    if job.image:
        srun += [
            f"--container-image={job.image}",
            f"--container-mounts={job.folder}",
            f"--container-workdir={job.folder}",
        ]
    words = shlex.join([*program, "run", job.config, *job.words, "--nproc", str(job.processes)])
    # set only when Slurm starts the job anew
    resume = f'${{SLURM_RESTART_COUNT:+"{RESUME}"}}'
    if job.nodes == 1:
        return [f"{shlex.join(srun)} {words} {resume}"]
    return [
        'host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
        "port=$((20000 + SLURM_JOB_ID % 10000))",
        "# the number of the machine is known in each task alone",
        "# shellcheck disable=SC2016",
        f"""{shlex.join(srun)} bash -c 'exec "$@" --node-rank "$SLURM_NODEID"' oumi \\""",
        f'  {words} {resume} --nnodes {job.nodes} --rdzv "$host:$port"',
    ]
