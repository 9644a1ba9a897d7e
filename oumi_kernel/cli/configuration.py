"""How every command opens a configuration: by name, with overrides, and with what is installed."""

from __future__ import annotations

from collections.abc import Sequence

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import LoadedConfig, Override, examine_config, record_at
from oumi_kernel.plugins import Catalogue, scan
from oumi_kernel.repeat import local_components
from oumi_kernel.shipped import find_config


def open_sound_config(
    name: str, overrides: Sequence[Override], plugins: Sequence[str] = ()
) -> tuple[LoadedConfig, Catalogue]:
    """Do the same, and raise what is wrong with the configuration itself.

    Raises:
        ConfigError: Carries every problem of file and flags.
    """
    loaded, catalogue = open_config(name, overrides, plugins)
    if loaded.problems:
        raise ConfigError((*loaded.problems, *loaded.warnings))
    return loaded, catalogue


def open_config(
    name: str, overrides: Sequence[Override], plugins: Sequence[str] = ()
) -> tuple[LoadedConfig, Catalogue]:
    """Load a configuration, as far as it goes, beside the catalogue that serves it.

    Args:
        name: A path of a configuration or of the `run.json` of a run, or the name of a shipped configuration.
        overrides: Keys given on the command line.
        plugins: Components from local files, as `--plugin` names them.

    Raises:
        ConfigError: The file cannot be read.
        PluginError: A value of `--plugin` names nothing.
    """
    path = find_config(name)
    record = record_at(path)
    catalogue = scan((*plugins, *local_components(record, plugins)) if record else plugins)
    return examine_config(path, overrides, sections=catalogue.sections), catalogue
