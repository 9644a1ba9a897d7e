"""Text into a typed configuration, with every problem reported at once and every value's origin known."""

from oumi_kernel.loading.decode import convert
from oumi_kernel.loading.document import Document, Origin
from oumi_kernel.loading.loader import LoadedConfig, examine_config, load_config, load_text, record_at
from oumi_kernel.loading.overrides import Override, split_overrides
from oumi_kernel.loading.record import RecordedComponent, RunRecord
from oumi_kernel.loading.report import render_problems
from oumi_kernel.loading.yaml_writer import to_yaml

__all__ = [
    "Document",
    "LoadedConfig",
    "Origin",
    "Override",
    "RecordedComponent",
    "RunRecord",
    "convert",
    "examine_config",
    "load_config",
    "load_text",
    "record_at",
    "render_problems",
    "split_overrides",
    "to_yaml",
]
