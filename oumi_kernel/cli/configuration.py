"""How every command opens a configuration: by name, with overrides, and with what is installed."""

from __future__ import annotations

from collections.abc import Sequence

from oumi_kernel.loading import LoadedConfig, Override, load_config
from oumi_kernel.plugins import Catalogue, scan
from oumi_kernel.shipped import find_config


def open_config(
    name: str, overrides: Sequence[Override], plugins: Sequence[str] = ()
) -> tuple[LoadedConfig, Catalogue]:
    """Load a configuration beside the catalogue that serves it.

    Args:
        name: A path, or the name of a shipped configuration.
        overrides: Keys given on the command line.
        plugins: Components from local files, as `--plugin` names them.

    Raises:
        ConfigError: The configuration is wrong; carries every problem.
        PluginError: A value of `--plugin` names nothing.
    """
    catalogue = scan(plugins)
    return load_config(find_config(name), overrides, sections=catalogue.sections), catalogue
