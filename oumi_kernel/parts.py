"""Checkpoints of which each process wrote what it has."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from oumi_kernel.completeness import incompleteness
from oumi_kernel.contracts import Run
from oumi_kernel.errors import CheckpointError, ConfigError
from oumi_kernel.loading import load_config, split_overrides
from oumi_kernel.merging import put_in_place, refuse_what_is_there
from oumi_kernel.plugins import Kernel, resolve, scan

RECORD = "run.json"
ANYWHERE = ("--training.mixed_precision_dtype=none", "--fsdp.enable_fsdp=false", "--deepspeed.enable_deepspeed=false")
"""What makes a configuration one that any machine, and one process, can serve."""


@runtime_checkable
class SavesParts(Protocol):
    """What a strategy may offer beside `Strategy`: checkpoints of which each process writes what it has."""

    def save_weights(self, model: Any, directory: Path) -> bool:
        """Write this process's part of the weights; False: they are to be written whole. Every rank must call it."""
        ...

    def load_weights(self, model: Any, directory: Path) -> bool:
        """Read such weights, written by any number of processes, into the model; False: there are none.

        For a model without weights names and shapes are compared.

        Raises:
            CheckpointError: A file is missing, damaged, or does not fit the model.
        """
        ...

    def whole_weights(self, directory: Path) -> Mapping[str, Any]:
        """Return name -> whole tensor of such weights, in the host's memory; one process is enough.

        Raises:
            CheckpointError: A file is missing or damaged, or there are none.
        """
        ...


def consolidate(folder: Path, output: Path | None = None) -> Path:
    """Write the weights of a checkpoint, which processes wrote in parts, as a whole model; return its folder.

    Neither these processes nor their devices are needed: one process reads all parts, in the host's memory.

    Args:
        folder: The checkpoint, in or beside the folder of its run.
        output: Where to write; `<folder>-consolidated` unless given.

    Raises:
        ConfigError: There is no checkpoint, or it is whole already, or the output exists.
        CheckpointError: A part is missing or damaged, or the model cannot be written.
    """
    target = output or folder.absolute().with_name(f"{folder.absolute().name}-consolidated")
    refuse_what_is_there(target)
    problem = incompleteness(folder)
    if problem:
        raise CheckpointError(f"{folder} is no complete checkpoint: {problem}.")
    kernel, run = _stage(folder)
    beside = target.with_name(f".tmp-{target.name}")
    shutil.rmtree(beside, ignore_errors=True)
    with kernel.manager.attributed():
        strategy: Any = kernel.build_strategy(run)
        if not isinstance(strategy, SavesParts):
            raise ConfigError(f"the strategy {type(strategy).__name__} cannot read weights in parts.")
        weights = strategy.whole_weights(folder)
        tokenizer = kernel.build_tokenizer(run)
        skeleton = kernel.build_skeleton(tokenizer, {}, run)
        try:
            beside.mkdir(parents=True)
            kernel.save_model(skeleton, lambda: weights, tokenizer, beside, run)
            put_in_place(beside, target)
        except OSError as error:
            raise CheckpointError(f"cannot write {target}: {error}. Choose another folder: --output DIR.") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return target


def _stage(folder: Path) -> tuple[Kernel, Run]:
    """Return what builds the model of the run that left a checkpoint.

    Raises:
        ConfigError: The run's record is not there, or what it names is not.
    """
    record = folder.absolute().parent / RECORD
    if not record.is_file():
        raise ConfigError(f"{record} is not there: it says which model these are the weights of. Put it back.")
    overrides, _ = split_overrides(ANYWHERE)
    loaded = load_config(record, overrides)
    resolution = resolve(loaded, scan())
    resolution.raise_for_problems(strict=True)
    return Kernel(resolution), Run(config=loaded.config, folder=loaded.folder, rehearsal=True)
