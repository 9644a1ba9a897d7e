"""The YAML section `deepspeed`: ZeRO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from oumi_kernel.schema import ConfigEnum, NonNegativeFloat, NonNegativeInt, Params, PositiveInt


class ZeroStage(ConfigEnum):
    """What is divided between processes: nothing, optimizer state, gradients too, parameters too."""

    ZERO_0 = "0"
    ZERO_1 = "1"
    ZERO_2 = "2"
    ZERO_3 = "3"


class DeepSpeedPrecision(ConfigEnum):
    """The number format of the computation."""

    FP16 = "fp16"
    BF16 = "bf16"


class OffloadDevice(ConfigEnum):
    """Where state rests while it is not used."""

    CPU = "cpu"
    NVME = "nvme"


class OffloadConfig(Params):
    """How state is moved off the GPU."""

    device: OffloadDevice = OffloadDevice.CPU
    """Where it goes: the host's memory, or a disk."""

    pin_memory: bool = True
    """Whether the host's memory is page-locked."""

    buffer_count: PositiveInt = 4
    """Buffers for the optimizer state."""

    buffer_count_nvme: PositiveInt = 2
    """Buffers for parameters on a disk."""

    block_size: PositiveInt = 1048576
    """Bytes of one read or write on a disk."""

    queue_depth: PositiveInt = 8
    """Requests waiting at a disk."""

    single_submit: bool = False
    """Whether requests are sent one by one."""

    overlap_events: bool = True
    """Whether a disk is read and written at once."""

    thread_count: PositiveInt = 1
    """Threads for each request."""


class DeepSpeedParams(Params):
    """Training with DeepSpeed's ZeRO. Needs the extra `deepspeed`."""

    enable_deepspeed: bool = False
    """Whether DeepSpeed trains the model."""

    deepspeed_config_path: str | None = None
    """A DeepSpeed configuration file, instead of the keys below."""

    zero_stage: ZeroStage = ZeroStage.ZERO_0
    """What is divided: ZERO_0 nothing, ZERO_1 optimizer state, ZERO_2 gradients too, ZERO_3 parameters too."""

    offload_optimizer: OffloadConfig | None = None
    """How the optimizer state leaves the GPU. Null: it stays. Needs ZERO_1 or more."""

    offload_param: OffloadConfig | None = None
    """How parameters leave the GPU. Null: they stay. Needs ZERO_3."""

    precision: DeepSpeedPrecision | None = None
    """The number format of the computation. Null: that of the weights."""

    overlap_comm: bool = False
    """Whether gradients are exchanged during the backward pass."""

    contiguous_gradients: bool = True
    """Whether gradients are copied to one buffer."""

    reduce_bucket_size: PositiveInt | Literal["auto"] = 500_000_000
    """Elements reduced at once."""

    allgather_bucket_size: PositiveInt = 500_000_000
    """Elements gathered at once."""

    allgather_partitions: bool = True
    """Whether updated parameters are gathered at once instead of one by one."""

    reduce_scatter: bool = True
    """Whether gradients are averaged by reduce-scatter."""

    round_robin_gradients: bool = False
    """Whether gradient copies to the host are spread over processes."""

    stage3_prefetch_bucket_size: NonNegativeInt | Literal["auto"] = 50_000_000
    """Elements fetched ahead, for ZERO_3."""

    stage3_param_persistence_threshold: NonNegativeInt | Literal["auto"] = 100_000
    """Parameters below this many elements are not divided, for ZERO_3."""

    stage3_max_live_parameters: NonNegativeInt = 1_000_000_000
    """Most parameters on a GPU at once, for ZERO_3."""

    stage3_max_reuse_distance: NonNegativeInt = 1_000_000_000
    """Parameters used again within this many elements stay, for ZERO_3."""

    sub_group_size: PositiveInt = 1_000_000_000
    """Elements that the optimizer updates at once, for ZERO_3."""

    stage3_gather_16bit_weights_on_model_save: bool = False
    """Whether whole weights are gathered when the model is saved, for ZERO_3."""

    train_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Examples of a step over all processes; derived, leave it on auto."""

    train_micro_batch_size_per_gpu: PositiveInt | Literal["auto"] = "auto"
    """Examples of a micro-batch; derived, leave it on auto."""

    gradient_accumulation_steps: PositiveInt | Literal["auto"] = "auto"
    """Micro-batches of a step; derived, leave it on auto."""

    gradient_clipping: NonNegativeFloat | Literal["auto"] = "auto"
    """Largest norm of the gradient; derived, leave it on auto."""

    zero_allow_untested_optimizer: bool = True
    """Whether optimizers that DeepSpeed has not tested may be used."""

    zero_force_ds_cpu_optimizer: bool = True
    """Whether offloading insists on DeepSpeed's own optimizer."""

    activation_checkpointing: dict[str, Any] = {}
    """DeepSpeed's own settings for activation checkpointing."""

    memory_efficient_linear: bool = False
    """No longer has a meaning; accepted for old files."""

    steps_per_print: PositiveInt = 10
    """Steps between DeepSpeed's own lines in the log."""

    wall_clock_breakdown: bool = False
    """Whether DeepSpeed logs the time of forward, backward and step."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse offloading of what the stage does not divide."""
        if self.offload_param and self.zero_stage is not ZeroStage.ZERO_3:
            yield "offload_param", "parameters can leave the GPU only with zero_stage: ZERO_3."
        if self.offload_optimizer and self.zero_stage is ZeroStage.ZERO_0:
            yield (
                "offload_optimizer",
                "optimizer state can leave the GPU only with zero_stage ZERO_1, ZERO_2 or ZERO_3.",
            )
