"""The configurations that the distribution carries, by the path that they have in the repository."""

from __future__ import annotations

import difflib
import importlib.metadata
from pathlib import Path

from oumi_kernel.errors import ConfigError, Problem

_MARK = "share/oumi-kernel/configs/"


def shipped_configs() -> Path:
    """Return the folder of shipped configurations: beside the package in a checkout, else where pip put them."""
    checkout = Path(__file__).parent.parent / "configs"
    if checkout.is_dir():
        return checkout
    for file in importlib.metadata.files("oumi-kernel") or ():
        if _MARK in file.as_posix():
            above = str(file.locate()).partition(_MARK)[0]
            return Path(above).resolve() / _MARK
    return checkout


def find_config(name: str) -> Path:
    """Return the file that `name` means: a path, else a shipped configuration, with or without `configs/`.

    Raises:
        ConfigError: There is no such file; names the nearest.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    root = shipped_configs()
    relative = Path(name.removeprefix("./").removeprefix("configs/"))
    for candidate in (root / relative, root / relative / "train.yaml", root / "recipes" / relative / "train.yaml"):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        Problem(code="no-file", path="", message=f"there is no file '{name}'.", hint=_nearest(path, relative, root))
    )


def _nearest(path: Path, relative: Path, root: Path) -> str:
    beside = [str(path.parent / p.name) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    shipped = [f"configs/{p.relative_to(root)}" for p in root.rglob("*.yaml")] if root.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, 1)
    close += difflib.get_close_matches(f"configs/{relative}", shipped, 1)
    return f"did you mean '{close[0]}'?" if close else "Give the path of a YAML file, or 'quickstart'."
