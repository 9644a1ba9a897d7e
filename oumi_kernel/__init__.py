"""The kernel of oumi: typed configuration, plugins, and the order of a run. These names are for plugin authors."""

from oumi_kernel.component import (
    KERNEL_API,
    CollatorComponent,
    Component,
    DatasetComponent,
    hookimpl,
)
from oumi_kernel.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    OumiError,
    OutOfMemoryError,
    PluginError,
    Problem,
    ProcessError,
    StopRequested,
)
from oumi_kernel.schema import ConfigEnum, Params, dump

__all__ = [
    "KERNEL_API",
    "CheckpointError",
    "CollatorComponent",
    "Component",
    "ConfigEnum",
    "ConfigError",
    "DataError",
    "DatasetComponent",
    "NumericsError",
    "OumiError",
    "OutOfMemoryError",
    "Params",
    "PluginError",
    "Problem",
    "ProcessError",
    "StopRequested",
    "dump",
    "hookimpl",
]
