"""The YAML section `training.telemetry`: figures of the machine, kept in files of the run. Nothing is sent anywhere."""

from __future__ import annotations

from oumi_kernel.schema import Params


class TelemetryParams(Params):
    """What is recorded about the machine during a run."""

    telemetry_dir: str | None = "telemetry"
    """Folder of the records; a relative one is under the output folder."""

    collect_telemetry_for_all_ranks: bool = False
    """Whether every process records, not only the first."""

    track_gpu_temperature: bool = False
    """Whether to record the GPU's temperature."""
