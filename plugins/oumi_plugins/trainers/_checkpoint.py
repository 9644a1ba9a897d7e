"""Checkpoints: written beside, verified, then renamed. Only complete ones are eligible; nothing executes on load."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError
from oumi_kernel.contracts import Session

_log = logging.getLogger("oumi_plugins.trainers.checkpoint")
MANIFEST = "manifest.json"
STATE = "trainer_state.json"
RANDOM_TENSORS = "random_state.safetensors"
RANDOM = "random_state.json"
_NAME = re.compile(r"checkpoint-(\d+)\Z")


class Progress(msgspec.Struct):
    """How far training is.

    Attributes:
        step: Optimizer steps done.
        epoch: Epochs done.
        micro_batches: Micro-batches of the current epoch done.
        tokens: Tokens read, without padding.
        loss_sum: Sum of token losses since the last log entry.
        loss_count: Supervised tokens since the last log entry.
        skipped: Steps that were not taken, because loss or gradient was not finite.
        overflowed: Steps that were not taken, because the gradient overflowed in fp16.
        evaluation_due: Whether the evaluation of this step was broken off.
        order: What the order of samples follows from; the same again is what lets an epoch go on.
    """

    step: int = 0
    epoch: int = 0
    micro_batches: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    overflowed: int = 0
    evaluation_due: bool = False
    order: dict[str, int] = {}


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, session: Session, keep: int | None) -> None:
        self._session, self._keep = session, keep
        self._folder = session.run.output_dir

    def save(self, progress: Progress) -> Path:
        """Write a complete checkpoint and return its folder.

        Raises:
            CheckpointError: It cannot be written; older checkpoints are left as they are.
        """
        session, target = self._session, self._folder / f"checkpoint-{progress.step}"
        beside = self._folder / f".tmp-{target.name}"
        model = session.prepared.model
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            state = lambda: session.strategy.full_state(model)  # noqa: E731
            session.kernel.save_model(model, state, session.tokenizer, beside, session.run)
            session.strategy.save(beside)
            _save_random_state(beside)
            (beside / STATE).write_bytes(msgspec.json.format(msgspec.json.encode(progress), indent=2))
            _write_manifest(beside)
            _replace(target, beside)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(self._folder).free if self._folder.exists() else 0
            raise CheckpointError(f"cannot write {target}: {error}; {free:,} bytes are free.") from error
        self._prune(progress.step)
        return target

    def resume(self, order: Mapping[str, int]) -> Progress | None:
        """Restore the checkpoint that the configuration names, or the newest one if it says so; else None.

        Args:
            order: What the order of samples of this run follows from.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete, damaged, or does not fit.
        """
        found = self.find(order)
        if found is None:
            return None
        folder, progress = found
        session = self._session
        session.kernel.load_weights(session.prepared.model, folder, session.run)
        session.strategy.load(folder)
        _load_random_state(folder)
        return progress

    def find(self, order: Mapping[str, int]) -> tuple[Path, Progress] | None:
        """Return the checkpoint that `resume` restores, and how far it is; None if there is none.

        Raises:
            CheckpointError: It is missing, incomplete, damaged, or stands in an epoch of another order.
        """
        folder = self._chosen()
        if folder is None:
            return None
        try:
            progress = msgspec.json.decode((folder / STATE).read_bytes(), type=Progress)
        except (OSError, msgspec.DecodeError) as error:
            raise CheckpointError(f"{folder / STATE} cannot be read: {error}") from error
        _check_order(folder, progress, order)
        return folder, progress

    def _chosen(self) -> Path | None:
        training = self._session.run.config.training
        if training.resume_from_checkpoint:
            folder = Path(self._session.run.locate(training.resume_from_checkpoint))
            problem = incompleteness(folder)
            if problem:
                raise CheckpointError(f"training.resume_from_checkpoint: cannot go on from {folder}: {problem}.")
            return folder
        for _, folder in reversed(checkpoints_in(self._folder)) if training.try_resume_from_last_checkpoint else ():
            problem = incompleteness(folder)
            if not problem:
                return folder
            _log.warning("%s is passed over: %s", folder, problem)
        return None

    def _prune(self, step: int) -> None:
        """Delete the oldest; never the one just written, nor what another run left with a higher number."""
        older = [folder for at, folder in checkpoints_in(self._folder) if at < step]
        for folder in older[: len(older) + 1 - self._keep] if self._keep and len(older) >= self._keep else ():
            shutil.rmtree(folder, ignore_errors=True)


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return sorted(found)


def incompleteness(folder: Path) -> str:
    """Return why a folder is no complete checkpoint; empty if it is one."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        for name, (size, digest) in manifest["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is missing or cut short"
            if _digest(file) != digest:
                return f"{name} was changed after it was written"
    except FileNotFoundError:
        return "there is no manifest.json, so it was never completed" if folder.is_dir() else "there is no such folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error}"
    return ""


def _check_order(folder: Path, progress: Progress, order: Mapping[str, int]) -> None:
    """Refuse to go on within an epoch whose order would be another one: samples would be repeated or left out."""
    saved = progress.order
    changed = [f"{key} was {saved.get(key)}, now {value}" for key, value in order.items() if saved.get(key) != value]
    if progress.micro_batches and changed:
        raise CheckpointError(
            f"cannot go on from {folder}, which stands within an epoch: {'; '.join(changed)}. "
            "Set it back, or go on from a checkpoint at the end of an epoch."
        )


def _replace(target: Path, beside: Path) -> None:
    """Put a finished folder in the place of `target`, which may exist from an earlier run."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    rows = {str(path.relative_to(folder)): (path.stat().st_size, _digest(path)) for path in files}
    (folder / MANIFEST).write_text(json.dumps({"files": rows}, indent=2))
    _sync(folder / MANIFEST)
    _sync(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_random_state(folder: Path) -> None:
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    save_file(tensors, folder / RANDOM_TENSORS)
    record = {"python": [version, numbers, gauss], "numpy": [name, position, has_gauss, cached]}
    (folder / RANDOM).write_text(json.dumps(record))


def _load_random_state(folder: Path) -> None:
    try:
        tensors = load_file(folder / RANDOM_TENSORS)
        record = json.loads((folder / RANDOM).read_bytes())
        version, numbers, gauss = record["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, position, has_gauss, cached = record["numpy"]
        keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((name, keys, position, has_gauss, cached))
        torch.set_rng_state(tensors["torch"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"the random state in {folder} cannot be read: {error}") from error
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
