"""`oumi config show`: the effective configuration, every default written out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Parameter

from oumi_kernel.loading import Override

MODELINE = (
    "# yaml-language-server: $schema=oumi.schema.json\n"
    "# (editors then check and complete it: oumi config schema > oumi.schema.json)\n"
)


def show(
    config: str,
    /,
    *,
    format: Literal["yaml", "json"] = "yaml",
    overrides: Annotated[Sequence[Override], Parameter(parse=False)],
) -> None:
    """Print a configuration as a run would see it; values from the environment by the variable's name.

    Args:
        config: A YAML file, or the name of a shipped configuration such as 'quickstart'.
        format: yaml (which loads again unchanged) or json.
        overrides: Keys given on the command line.

    Raises:
        ConfigError: The configuration is wrong.
    """
    import msgspec

    from oumi_kernel.cli.configuration import open_sound_config
    from oumi_kernel.loading import to_yaml
    from oumi_kernel.manifest import effective_config

    loaded, _ = open_sound_config(config, overrides)
    tree = effective_config(loaded)
    if format == "json":
        text = msgspec.json.format(msgspec.json.encode(tree), indent=2).decode() + "\n"
    else:
        text = MODELINE + to_yaml(tree)
    sys.stdout.write(text)
