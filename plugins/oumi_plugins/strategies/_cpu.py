"""Settings of a CPU that change its speed and not its results."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
from typing import Any

import torch

_log = logging.getLogger("oumi_plugins.strategies.cpu")
LARGEST_ERROR = 2e-6
"""Relative error of a float32 matrix product that counts as float32; bfloat16 has about 3e-3."""
PRIMITIVES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
"""How many products oneDNN keeps prepared, each with memory of its own. Its usual 1,024 take hundreds of megabytes
where each step has other shapes, and the layers of one step have some dozens."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Names of glibc's mallopt(3)."""
LARGE_BYTES, MAPPINGS = 128 * 1024, 65536
"""glibc's own values, which it would raise as it goes: how large a block is given back, and how many may be."""


def faster_matmul() -> str | None:
    """Multiply float32 matrices through oneDNN where that is float32 indeed, and return the setting that was there.

    The setting allows products of bfloat16. A CPU without instructions for those computes in float32 all the same, and
    on many about twice as fast as by torch's default library; one with them does not, which the error of a product
    tells. Returns None where nothing was changed.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    os.environ.setdefault(*PRIMITIVES)
    backend = _backend()
    before = str(backend.fp32_precision)
    backend.fp32_precision = "bf16"
    error = _matmul_error()
    if error > LARGEST_ERROR:
        backend.fp32_precision = before
        return None
    _log.info("float32 matrices are multiplied through oneDNN (relative error %.1e)", error)
    return before


def restore_matmul(before: str | None) -> None:
    """Put back the setting that `faster_matmul` returned."""
    if before is not None:
        _backend().fp32_precision = before


def keep_freed_memory() -> None:
    """Let glibc keep large blocks when they are freed, so that the next step need not fetch and clear them again.

    What is kept does not fit all that comes: a process takes about a quarter more, and twice as much with layers that
    are computed again.
    """
    _allocate({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def give_freed_memory_back() -> None:
    """Let glibc give large blocks back when they are freed: the process then takes no more than what is alive."""
    _allocate({M_MMAP_MAX: MAPPINGS, M_MMAP_THRESHOLD: LARGE_BYTES, M_TRIM_THRESHOLD: LARGE_BYTES})


def is_glibc() -> bool:
    """Return whether memory is allocated by glibc."""
    return platform.libc_ver()[0] == "glibc"


def _allocate(settings: dict[int, int]) -> None:
    if is_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in settings.items():
            mallopt(name, value)


def _backend() -> Any:
    return torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue] - made at import, by torch


def _matmul_error() -> float:
    """Return the relative error of forward and backward products of usual sizes, against float64."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 512, generator=generator) for _ in range(2))
    worst = 0.0
    for a, b in ((left, right.t()), (left.t(), right)):
        exact = a.double() @ b.double()
        worst = max(worst, float((a @ b - exact).norm() / exact.norm()))
    return worst
