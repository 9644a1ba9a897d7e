"""What a run leaves about itself: `run.json`, and `failure.json` when it fails."""

from __future__ import annotations

import copy
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from oumi_kernel.errors import CheckpointError
from oumi_kernel.loading import LoadedConfig
from oumi_kernel.loading.document import parse_path
from oumi_kernel.plugins.catalogue import Entry
from oumi_kernel.schema import dump

LIBRARIES = ("oumi-kernel", "torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "peft")


def run_record(loaded: LoadedConfig, components: Iterable[Entry], rows: Mapping[str, int]) -> dict[str, Any]:
    """Return what `run.json` holds: effective configuration, components, versions, rows per split."""
    return {
        "config": effective_config(loaded),
        "components": [
            {"family": e.family, "name": e.name, "distribution": e.distribution, "version": e.version, "value": e.value}
            for e in components
        ],
        "python": platform.python_version(),
        "libraries": dict(_versions(LIBRARIES)),
        "rows": dict(rows),
    }


def effective_config(loaded: LoadedConfig) -> dict[str, Any]:
    """Return the whole configuration as plain data, defaults and plugins' own sections included.

    A value that came from the environment is written as `${env:NAME}`, never as its value.
    """
    config: dict[str, Any] = dump(loaded.config) | copy.deepcopy(loaded.extra_sections)
    for path, reference in loaded.document.environment.items():
        _put(config, path, reference)
    return config


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` as indented JSON.

    Raises:
        CheckpointError: The file cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(record), indent=2)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}. Choose another training.output_dir or make it writable."
        ) from error


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def _put(tree: Any, path: str, value: str) -> None:
    *parents, last = parse_path(path)
    for part in parents:
        tree = tree[part]
    tree[last] = value
