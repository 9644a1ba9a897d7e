"""What the processes of a run compare before they train together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from oumi_kernel.loading import RunRecord

ABSENT = "nothing"
SHOWN = 5
"""Differences of one process that are shown."""


@runtime_checkable
class Agrees(Protocol):
    """What a strategy of several processes may offer beside `Strategy`."""

    def agree(self, facts: Mapping[str, str], folder: Path) -> None:
        """Compare what the result follows from with the other processes, and whether all see the same folder.

        It is called when the data is prepared, before there is a model.

        Args:
            facts: Name -> value of what must be the same in all of them.
            folder: The output folder of the run.

        Raises:
            ConfigError: Something is not the same.
        """
        ...


def facts_of(record: RunRecord) -> dict[str, str]:
    """Return what the processes of a run must have in common: configuration, data, and versions."""
    facts = dict(_leaves("", record.config))
    for component in record.components:
        facts[f"the component {component.name} of {component.family}"] = " ".join(
            part for part in (component.distribution, component.version, component.sha256[:12]) if part
        )
    facts |= {f"the version of {name}": version for name, version in record.libraries.items()}
    facts |= {f"data.{split}: the prepared examples": str(digest) for split, digest in record.fingerprints.items()}
    return facts


def differences(first: Mapping[str, str], own: Mapping[str, str], rank: int) -> list[str]:
    """Return in words what is not the same in process `rank` as in process 0."""
    found = [name for name in dict.fromkeys((*first, *own)) if first.get(name) != own.get(name)]
    lines = [
        f"{name}: {first.get(name, ABSENT)} in process 0, {own.get(name, ABSENT)} in process {rank}"
        for name in found[:SHOWN]
    ]
    return [*lines, f"and {len(found) - SHOWN} more in process {rank}"] if len(found) > SHOWN else lines


def _leaves(path: str, value: Any) -> list[tuple[str, str]]:
    """Return key -> JSON of each value that is no section; a list is one value."""
    if not isinstance(value, dict) or not value:
        return [(path, msgspec.json.encode(value).decode())]
    inner = (_leaves(f"{path}.{key}" if path else str(key), below) for key, below in value.items())
    return [leaf for leaves in inner for leaf in leaves]
