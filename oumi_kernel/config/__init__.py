"""The typed configuration: one file a YAML section."""

from oumi_kernel.config.data import DataParams, DatasetParams, DatasetSplitParams, TrainTarget
from oumi_kernel.config.deepspeed import DeepSpeedParams, OffloadConfig
from oumi_kernel.config.fsdp import FSDPParams
from oumi_kernel.config.gkd import GkdParams
from oumi_kernel.config.gold import GoldParams
from oumi_kernel.config.grpo import GrpoParams
from oumi_kernel.config.model import ModelParams
from oumi_kernel.config.peft import PeftParams, PeftSaveMode
from oumi_kernel.config.profiler import ProfilerParams
from oumi_kernel.config.telemetry import TelemetryParams
from oumi_kernel.config.training import MixedPrecisionDtype, Moments, TrainingParams
from oumi_kernel.config.training_config import TrainingConfig

__all__ = [
    "DataParams",
    "DatasetParams",
    "DatasetSplitParams",
    "DeepSpeedParams",
    "FSDPParams",
    "GkdParams",
    "GoldParams",
    "GrpoParams",
    "MixedPrecisionDtype",
    "ModelParams",
    "Moments",
    "OffloadConfig",
    "PeftParams",
    "PeftSaveMode",
    "ProfilerParams",
    "TelemetryParams",
    "TrainTarget",
    "TrainingConfig",
    "TrainingParams",
]
