"""Checkpoints: written beside, verified, then renamed. Only complete ones are eligible; nothing executes on load."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError
from oumi_kernel.contracts import Session

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
    """

    step: int = 0
    epoch: int = 0
    micro_batches: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0


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
            shutil.rmtree(target, ignore_errors=True)
            beside.rename(target)
            _sync(self._folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(self._folder).free if self._folder.exists() else 0
            raise CheckpointError(f"cannot write {target}: {error}; {free:,} bytes are free.") from error
        self._prune()
        return target

    def resume(self) -> Progress | None:
        """Restore the checkpoint that the configuration names, or the newest one if it says so; else None.

        Raises:
            CheckpointError: The checkpoint is missing, incomplete, damaged, or does not fit.
        """
        folder = self._chosen()
        if folder is None:
            return None
        problem = incompleteness(folder)
        if problem:
            raise CheckpointError(f"cannot go on from {folder}: {problem}.")
        session = self._session
        session.kernel.load_weights(session.prepared.model, folder, session.run)
        session.strategy.load(folder)
        try:
            progress = msgspec.json.decode((folder / STATE).read_bytes(), type=Progress)
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{folder / STATE} cannot be read: {error}") from error
        _load_random_state(folder)
        return progress

    def _chosen(self) -> Path | None:
        training = self._session.run.config.training
        if training.resume_from_checkpoint:
            return Path(self._session.run.locate(training.resume_from_checkpoint))
        if not training.try_resume_from_last_checkpoint:
            return None
        return next((folder for folder in reversed(checkpoints_in(self._folder)) if not incompleteness(folder)), None)

    def _prune(self) -> None:
        for folder in checkpoints_in(self._folder)[: -self._keep] if self._keep else ():
            shutil.rmtree(folder, ignore_errors=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


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
