"""The root of a training configuration."""

from __future__ import annotations

from oumi_kernel.config.data import DataParams
from oumi_kernel.config.deepspeed import DeepSpeedParams
from oumi_kernel.config.fsdp import FSDPParams
from oumi_kernel.config.model import ModelParams
from oumi_kernel.config.peft import PeftParams
from oumi_kernel.config.training import TrainingParams
from oumi_kernel.schema import Params


class TrainingConfig(Params):
    """One training run. Installed plugins may own further sections."""

    model: ModelParams
    """Which model, how it is loaded, and what of it trains."""

    data: DataParams = DataParams()
    """What it trains on."""

    training: TrainingParams = TrainingParams()
    """How it trains."""

    peft: PeftParams = PeftParams()
    """Adapters and quantisation."""

    fsdp: FSDPParams = FSDPParams()
    """Fully sharded data parallel training."""

    deepspeed: DeepSpeedParams = DeepSpeedParams()
    """Training with DeepSpeed."""
