"""`oumi plugins list`: what is installed, from metadata alone, so that a broken or heavy plugin does no harm."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Literal

from oumi_kernel.plugins.catalogue import Entry

_COLUMNS = ("family", "name", "distribution", "version", "state")


def list_plugins(*, family: str | None = None, format: Literal["text", "json"] = "text") -> None:
    """List components: family, names, distribution, version, and whether they can be used.

    Args:
        family: Only this one, such as optimizers.
        format: text (a table, a row for each component) or json (an object for each name).

    Raises:
        ConfigError: There is no such family.
    """
    from oumi_kernel.plugins import FAMILIES, scan

    if family is not None and family not in FAMILIES:
        from oumi_kernel.errors import ConfigError

        raise ConfigError(f"--family: there is no family '{family}'. Families: {', '.join(FAMILIES)}.")
    entries = [entry for entry in scan().entries if family in (None, entry.family)]
    if format == "json":
        _write_json(entries)
    else:
        _write_table(entries)


def _write_json(entries: Iterable[Entry]) -> None:
    import msgspec

    records = [{column: getattr(entry, column) for column in (*_COLUMNS, "value", "also")} for entry in entries]
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(records), indent=2).decode() + "\n")


def _write_table(entries: Iterable[Entry]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*_COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    rows: dict[Any, list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry.family, entry.distribution, entry.value, entry.state), []).append(entry)
    for (family, distribution, _, state), same in rows.items():
        names = ", ".join(entry.name for entry in same)
        style = "" if state == "ready" else "red"
        table.add_row(family, Text(names), Text(distribution), Text(same[0].version), Text(state, style=style))
    width = None if sys.stdout.isatty() else 1000  # a pipe gets whole rows
    Console(width=width).print(table if rows else "No component is installed.")
