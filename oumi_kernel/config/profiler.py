"""The YAML section `training.profiler`: torch's profiler."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oumi_kernel.schema import NonNegativeInt, Params, PositiveInt


class ProfilerScheduleParams(Params):
    """Which steps are profiled."""

    enable_schedule: bool = False
    """Whether to profile only the steps below instead of all."""

    wait: NonNegativeInt = 0
    """Steps to skip before each cycle."""

    warmup: NonNegativeInt = 1
    """Steps that the profiler runs without recording."""

    active: PositiveInt = 3
    """Steps recorded in each cycle."""

    repeat: NonNegativeInt = 1
    """Cycles; 0 repeats to the end."""

    skip_first: NonNegativeInt = 1
    """Steps to skip once, at the start."""


class ProfilerParams(Params):
    """What the profiler records."""

    save_dir: str | None = None
    """Folder of the traces. Null: `profiler` in the output folder."""

    enable_cpu_profiling: bool = False
    """Whether to record what the CPU does."""

    enable_cuda_profiling: bool = False
    """Whether to record what the GPU does."""

    record_shapes: bool = False
    """Whether to record the shapes of tensors."""

    profile_memory: bool = False
    """Whether to record allocations."""

    with_stack: bool = False
    """Whether to record source lines."""

    with_flops: bool = False
    """Whether to estimate floating point operations."""

    with_modules: bool = False
    """Whether to record the hierarchy of modules."""

    row_limit: Annotated[int, Meta(ge=-1)] = 50
    """Rows of the printed table; -1 is all."""

    schedule: ProfilerScheduleParams = ProfilerScheduleParams()
    """Which steps are profiled."""
