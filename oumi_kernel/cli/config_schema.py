"""`oumi config schema`: the JSON Schema of a configuration, with what is installed."""

from __future__ import annotations

import sys


def schema() -> None:
    """Print a JSON Schema (draft 2020-12) of the whole configuration; the same bytes for the same installation."""
    import msgspec

    from oumi_kernel.cli.json_schema import build_schema
    from oumi_kernel.plugins import scan

    document = msgspec.json.encode(build_schema(scan()))
    sys.stdout.write(msgspec.json.format(document, indent=2).decode() + "\n")
