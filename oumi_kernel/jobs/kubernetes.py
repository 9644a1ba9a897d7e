"""A PyTorchJob for Kubernetes (kubeflow.org/v1), and a ConfigMap in which the configuration travels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oumi_kernel.errors import ConfigError
from oumi_kernel.jobs.job import RESUME, Job, yaml_of

CONFIG = "/etc/oumi"
GRACE_SECONDS = 120
"""How long a pod has to leave a checkpoint when it is asked to stop."""


def script(job: Job) -> str:
    """Return both documents.

    Raises:
        ConfigError: An option is missing or has no meaning here, or the configuration names files beside itself.
    """
    job.refuse("Kubernetes", partition=job.partition, gpu_type=job.gpu_type)
    if not job.image or not job.volume:
        raise ConfigError(
            "Kubernetes needs --image, a container image with oumi-kernel, and --volume CLAIM:/PATH, a persistent "
            "volume claim that all pods can write: a pod's own disk is gone when it ends."
        )
    if "--plugin" in job.words:
        raise ConfigError("--plugin: a local file does not travel to a pod. Put it into the image, as a package.")
    text = job.file.read_text(encoding="utf-8")
    _refuse_local_paths(job, text)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name},
        "data": {job.file.name: text},
    }
    replicas = {"Master": _replicas(job, 1)}
    if job.nodes > 1:
        replicas["Worker"] = _replicas(job, job.nodes - 1)
    policy = {"cleanPodPolicy": "None"} | ({"activeDeadlineSeconds": job.seconds} if job.seconds else {})
    pytorch = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.name},
        "spec": {"nprocPerNode": str(job.processes), "runPolicy": policy, "pytorchReplicaSpecs": replicas},
    }
    return f"{yaml_of(config)}---\n{yaml_of(pytorch)}"


def _replicas(job: Job, count: int) -> dict[str, Any]:
    claim, path = job.mount
    output = f"--training.output_dir={path}/{job.name}"
    limits: dict[str, Any] = {"cpu": job.cpus} | ({"nvidia.com/gpu": job.gpus} if job.gpus else {})
    container = {
        "name": "pytorch",  # the operator looks for this name
        "image": job.image,
        "command": ["oumi", "run", f"{CONFIG}/{job.file.name}", *job.words, output, RESUME],
        "resources": {"limits": limits},
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG},
            {"name": "output", "mountPath": path},
            {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108 - processes exchange batches there
        ],
    }
    volumes = [
        {"name": "config", "configMap": {"name": job.name}},
        {"name": "output", "persistentVolumeClaim": {"claimName": claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    pod = {"terminationGracePeriodSeconds": GRACE_SECONDS, "containers": [container], "volumes": volumes}
    return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": pod}}


def _refuse_local_paths(job: Job, text: str) -> None:
    import yaml

    local = sorted({value for value in _texts(yaml.safe_load(text)) if value.startswith(("./", "../", "~"))})
    if local:
        message = f"{job.config} names files beside itself, which do not travel to a pod: {', '.join(local)}."
        raise ConfigError(f"{message} Put them into the volume or the image, and give absolute paths.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(below)
