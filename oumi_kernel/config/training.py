"""The YAML section `training`: how long, how fast, with which optimizer, and what is written on the way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from oumi_kernel.config.data import Seed
from oumi_kernel.config.gkd import GkdParams
from oumi_kernel.config.gold import GoldParams
from oumi_kernel.config.grpo import GrpoParams
from oumi_kernel.config.profiler import ProfilerParams
from oumi_kernel.config.telemetry import TelemetryParams
from oumi_kernel.schema import (
    FINITE,
    ConfigEnum,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Params,
    PositiveFloat,
    PositiveInt,
)

Beta = Annotated[float, Meta(ge=0, lt=1)]
LogLevel = Annotated[str, Meta(pattern=r"^(?i:debug|info|warning|error|critical)$", examples=["info", "warning"])]


class MixedPrecisionDtype(ConfigEnum):
    """The number format of matrix products, while weights stay in float32."""

    NONE = "none"
    FP16 = "fp16"
    BF16 = "bf16"


class Moments(ConfigEnum):
    """When something happens during training."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class TrainingParams(Params):
    """The training process."""

    use_peft: bool | None = None
    """Whether an adapter is trained instead of the whole model. Null: when the section `peft` is not empty."""

    trainer_type: str = "sft"
    """The training method. `oumi plugins list --family trainers` lists what is installed."""

    trainer_kwargs: dict[str, Any] = {}
    """Parameters of the trainer."""

    output_dir: Annotated[str, Meta(min_length=1)] = "output"
    """Folder for the model, checkpoints and logs."""

    run_name: str | None = None
    """Name of the run for trackers. Null: theirs."""

    seed: Seed = 42
    """Seed of everything random but the order of the data."""

    data_seed: Seed = 42
    """Seed of the order in which examples are seen."""

    use_deterministic: bool = False
    """Whether only deterministic algorithms may be used; slower."""

    full_determinism: bool = False
    """The same as `use_deterministic`, by its other name."""

    num_train_epochs: Annotated[float, Meta(ge=-1, le=FINITE)] = 3
    """Passes over the training examples; fractions work. `max_steps` wins."""

    max_steps: Annotated[int, Meta(ge=-1)] = -1
    """Optimizer steps; -1 counts epochs instead."""

    per_device_train_batch_size: PositiveInt = 8
    """Examples of a micro-batch on each device."""

    per_device_eval_batch_size: PositiveInt = 8
    """Examples of an evaluation batch on each device."""

    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches of an optimizer step."""

    learning_rate: NonNegativeFloat = 5e-5
    """Highest learning rate of the schedule."""

    optimizer: str = "adamw_torch"
    """The optimizer. `oumi plugins list --family optimizers` lists what is installed."""

    optimizer_kwargs: dict[str, Any] = {}
    """Further parameters of the optimizer."""

    weight_decay: NonNegativeFloat = 0.0
    """Weight decay; biases, norms and embeddings have none."""

    max_grad_norm: NonNegativeFloat | None = 1.0
    """Norm to which the whole gradient is clipped. Null or 0: not clipped."""

    adam_beta1: Beta = 0.9
    """Decay of Adam's first moment."""

    adam_beta2: Beta = 0.999
    """Decay of Adam's second moment."""

    adam_epsilon: PositiveFloat = 1e-8
    """Adam's term against division by zero."""

    sgd_momentum: Beta = 0.0
    """Momentum of SGD."""

    lr_scheduler_type: str = "linear"
    """The learning rate schedule. `oumi plugins list --family schedulers` lists what is installed."""

    lr_scheduler_kwargs: dict[str, Any] = {}
    """Parameters of the schedule."""

    warmup_ratio: Fraction | None = None
    """Share of all steps over which the learning rate rises from 0."""

    warmup_steps: NonNegativeInt | None = None
    """Steps over which the learning rate rises from 0. Wins over `warmup_ratio`."""

    mixed_precision_dtype: MixedPrecisionDtype = MixedPrecisionDtype.NONE
    """The number format of matrix products: none, fp16 or bf16. Weights and optimizer state stay in float32."""

    compile: bool = False
    """Whether the model is compiled with torch.compile; the first steps are slow."""

    enable_gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass instead of kept: less memory, more time."""

    gradient_checkpointing_kwargs: dict[str, Any] = {}
    """Parameters of that, such as use_reentrant."""

    save_steps: NonNegativeInt = 500
    """Steps between checkpoints; 0 saves none by steps."""

    save_epoch: bool = False
    """Whether a checkpoint is saved at the end of each epoch, beside `save_steps`."""

    save_final_model: bool = True
    """Whether the trained model is saved at the end."""

    resume_from_checkpoint: str | None = None
    """Folder of the checkpoint to go on from."""

    try_resume_from_last_checkpoint: bool = False
    """Whether to go on from the newest complete checkpoint of `output_dir`, if there is one."""

    eval_strategy: Moments = Moments.STEPS
    """When the validation split is evaluated: no, steps or epoch. Without a validation split: never."""

    eval_steps: PositiveInt = 500
    """Steps between evaluations."""

    metrics_function: str | None = None
    """Name of a metric computed in every evaluation."""

    metrics_kwargs: dict[str, Any] = {}
    """Parameters of the metric."""

    log_level: LogLevel = "info"
    """Least severity of our own log records: debug, info, warning, error or critical."""

    dep_log_level: LogLevel = "warning"
    """Least severity of the libraries' log records."""

    log_examples: bool = False
    """Whether the first batch is written to the log, token by token."""

    enable_wandb: bool = False
    """Whether figures go to Weights & Biases. Needs the extra `wandb`."""

    enable_mlflow: bool = False
    """Whether figures go to MLflow."""

    enable_tensorboard: bool = True
    """Whether figures are written for TensorBoard."""

    tracker_kwargs: dict[str, dict[str, Any]] = {}
    """Parameters of trackers, by the tracker's name."""

    logging_strategy: Moments = Moments.STEPS
    """When figures are logged: no, steps or epoch."""

    logging_steps: PositiveInt = 50
    """Steps between log entries."""

    logging_first_step: bool = False
    """Whether the first step is logged too."""

    logging_dir: str | None = None
    """Folder of TensorBoard's files. Null: `tensorboard` in the output folder."""

    dataloader_num_workers: Annotated[int, Meta(ge=0, le=1024)] | Literal["auto"] = 0
    """Processes that make batches: a number or auto; 0 makes them in the training process."""

    dataloader_persistent_workers: bool = False
    """Whether those processes live on between epochs."""

    dataloader_prefetch_factor: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Batches that each process makes ahead."""

    dataloader_main_process_only: bool | None = None
    """Whether the first process reads data for all of them. Null: the strategy decides."""

    ddp_find_unused_parameters: bool | None = False
    """Whether DDP looks for parameters that a step did not use."""

    nccl_default_timeout_minutes: PositiveFloat | None = None
    """Minutes until a collective operation between processes is given up. Null: torch's default."""

    include_performance_metrics: bool = False
    """Whether utilisation and memory are logged too."""

    include_alternative_mfu_metrics: bool = False
    """Whether utilisation is also computed in a second way."""

    log_model_summary: bool = False
    """Whether the layers of the model are written to the log."""

    empty_device_cache_steps: PositiveInt | None = None
    """Steps between releases of cached GPU memory. Null: never."""

    label_ignore_index: Annotated[int, Meta(ge=-(2**63), le=-1)] | None = None
    """The label of positions that carry no loss; negative, because others are tokens. Null: -100."""

    reward_functions: list[str] | None = None
    """Names of reward functions, for GRPO trainers."""

    reward_function_kwargs: dict[str, dict[str, Any]] = {}
    """Parameters of reward functions, by name."""

    grpo: GrpoParams = GrpoParams()
    """Settings of GRPO trainers."""

    gkd: GkdParams = GkdParams()
    """Settings of the GKD trainer."""

    gold: GoldParams = GoldParams()
    """Settings of the GOLD trainer."""

    verl_config_overrides: dict[str, Any] = {}
    """Settings passed to verl."""

    profiler: ProfilerParams = ProfilerParams()
    """What torch's profiler records."""

    telemetry: TelemetryParams = TelemetryParams()
    """What is recorded about the machine."""
