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
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
"""Names of glibc's mallopt(3)."""


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
    """Let glibc keep large blocks when they are freed, so that the next step need not fetch and clear them again."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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
