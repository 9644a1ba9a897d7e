"""Folders that are complete or not there: what a manifest vouches for, and how a folder takes its place.

A folder is written as `.tmp-NAME` and renamed. One that is in the way steps aside as `.old-NAME`, one that is deleted
goes as `.gone-NAME`: whenever a process is killed, `tidy` finds out from the names what was going on.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

from safetensors import safe_open

from oumi_kernel.completeness import MANIFEST, digest, incompleteness
from oumi_kernel.disk import sync

_NAME = re.compile(r"\A(?:\.old-)?checkpoint-(\d+)\Z")


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of everything named like a checkpoint, oldest first, as `tidy` leaves or would leave it."""
    places = [*folder.glob("checkpoint-*"), *_returning(folder)]
    return sorted((int(match[1]), path) for path in places if (match := _NAME.search(path.name)))


def last_written_first(folder: Path) -> list[Path]:
    """Return the same folders, the one that was written last first: what an earlier run left may have higher steps."""
    return [
        path for _, _, path in sorted(((written_at(p), step, p) for step, p in checkpoints_in(folder)), reverse=True)
    ]


def seal(folder: Path) -> int:
    """Check that every tensor file opens, write the manifest, wait for the disk, and return the bytes written."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names: dict[Path, list[str]] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:  # refuses a file that does not hold what its header says
                names[path] = sorted(opened.keys())
        sync(path)
    rows = {
        str(path.relative_to(folder)): (path.stat().st_size, digest(path), len(held := names.get(path, [])), *held[:1])
        for path in files
    }
    (folder / MANIFEST).write_text(json.dumps({"written_at": time.time(), "files": rows}, indent=2))
    sync(folder / MANIFEST)
    for path in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)
    return sum(size for size, *_ in rows.values())


def written_at(folder: Path) -> float:
    """Return when a checkpoint was written, in seconds of the system's clock, also if its manifest does not say."""
    try:
        return float(json.loads((folder / MANIFEST).read_bytes())["written_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.stat().st_mtime


def put(beside: Path, target: Path) -> None:
    """Put a sealed folder in the place of `target`, which may exist from an earlier run."""
    old = target.with_name(f".old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete a folder; if that is broken off, what is left is not taken for it."""
    gone = folder.with_name(f".gone-{folder.name}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def name_of(folder: Path) -> Path:
    """Return the checkpoint that a folder is or comes back as."""
    return folder.with_name(folder.name.removeprefix(".old-"))


def standing_for(target: Path) -> Path:
    """Return the folder that `tidy` makes `target`, or else `target`: a dry run changes no names."""
    return next((old for old in _returning(target.parent) if name_of(old) == target), target)


def tidy(folder: Path) -> None:
    """Clean up after a process that was killed while it wrote, replaced or deleted a checkpoint."""
    for old in _returning(folder):
        old.rename(name_of(old))
    for kind in ("old", "tmp", "gone"):
        for left in folder.glob(f".{kind}-checkpoint-*"):
            shutil.rmtree(left, ignore_errors=True)


def _returning(folder: Path) -> list[Path]:
    """Return the complete checkpoints that stepped aside for a successor that did not come."""
    aside = folder.glob(".old-checkpoint-*")
    return [old for old in aside if not name_of(old).exists() and not incompleteness(old)]
