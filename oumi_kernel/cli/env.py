"""`oumi env`: what a bug report needs to know about the machine. Values of environment variables are never shown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator

LIBRARIES = (
    "torch", "transformers", "datasets", "tokenizers", "accelerate", "safetensors", "peft", "bitsandbytes", "deepspeed",
    "liger-kernel", "wandb", "tensorboard", "msgspec", "pluggy", "cyclopts", "numpy",
)  # fmt: skip

_RELEVANT = re.compile(
    r"(OUMI|HF|HUGGING_FACE|TRANSFORMERS|TOKENIZERS|CUDA|NVIDIA|NCCL|GLOO|TORCH|TORCHELASTIC|PYTORCH|OMP|MKL|WANDB|"
    r"ACCELERATE|DEEPSPEED|DS|SLURM|MASTER|BNB|TRITON)_\w+|(LOCAL_|GROUP_)?RANK|(LOCAL_)?WORLD_SIZE"
)


def env() -> None:
    """Print versions, hardware, devices, and the names of environment variables that change a run."""
    for title, rows in (("System", _system()), ("Libraries", _libraries()), ("Devices", _devices())):
        sys.stdout.write(f"{title}\n")
        for name, value in rows:
            sys.stdout.write(f"  {name:<16} {value}\n")
    names = sorted(filter(_RELEVANT.fullmatch, os.environ))
    sys.stdout.write("Environment variables that are set (values are not shown)\n")
    sys.stdout.write("".join(f"  {name}\n" for name in names) or "  none that matters here\n")


def version_of(distribution: str) -> str:
    """Return the installed version of a distribution, or an empty string."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _system() -> Iterator[tuple[str, str]]:
    yield "oumi-kernel", version_of("oumi-kernel") or "a checkout that is not installed"
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "platform", platform.platform()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{usable} usable of {os.cpu_count()}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def _libraries() -> Iterator[tuple[str, str]]:
    for name in LIBRARIES:
        yield name, version_of(name) or "not installed"


def gpus() -> int:
    """Return how many GPUs torch can use, 0 if it cannot be asked."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return int(done.stdout) if done.returncode == 0 else 0


def _devices() -> Iterator[tuple[str, str]]:
    """Ask a process of its own, so that the kernel stays free of torch and survives one that crashes on import."""
    done = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        yield "unknown", f"torch cannot be imported: {last[0]}"
        return
    for line in done.stdout.splitlines():
        name, _, description = line.partition("\t")
        yield name, description


_ASK_TORCH = """
import torch
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        print(f"cuda:{index}\\t{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
elif torch.backends.mps.is_available():
    print("mps\\tApple GPU")
else:
    print("cpu\\tno GPU that torch can use")
"""
