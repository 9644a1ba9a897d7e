"""Whether a folder is a complete checkpoint: what its manifest says, compared with what is there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
STATE = "trainer_state.json"


def incompleteness(folder: Path) -> str:
    """Return why a folder is no complete checkpoint; empty if it is one. Files that it does not name are not opened."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        if STATE not in manifest["files"]:
            return f"manifest.json does not name {STATE}"
        for name, (size, expected, *held) in manifest["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                return f"{name} is missing or cut short{_said(*held)}"
            if digest(file) != expected:
                return f"{name} was changed after it was written{_said(*held)}"
    except FileNotFoundError:
        return "there is no manifest.json, so it was never completed" if folder.is_dir() else "there is no such folder"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error}"
    return ""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(count: int = 0, first: str = "") -> str:
    """Return which tensors a file held."""
    return f" (it held {count} tensors or parts of them, such as {first})" if count else ""
