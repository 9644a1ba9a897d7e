"""What DeepSpeed is told: the section `deepspeed` in its own words, or a file of its own, checked against ours.

Batch sizes, clipping, optimizer, schedule and number format are said once, in the other sections. A file may repeat
them, or say "auto", and nothing else.
"""

# DeepSpeed is an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from oumi_kernel import ConfigError, Problem
from oumi_kernel.config import DeepSpeedParams, MixedPrecisionDtype, OffloadConfig
from oumi_kernel.config.deepspeed import DeepSpeedPrecision, OffloadDevice, ZeroStage
from oumi_kernel.contracts import Run

_log = logging.getLogger("oumi_plugins.strategies.deepspeed")
AUTO = "auto"
FILE = "deepspeed.deepspeed_config_path"
SERVED = frozenset(
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping optimizer scheduler "
    "bf16 fp16 zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer steps_per_print "
    "wall_clock_breakdown memory_breakdown dump_state comms_logger flops_profiler aio".split()
)
"""Keys of a file that are passed on, or compared with ours."""
STAGE_12 = ("allgather_partitions", "allgather_bucket_size", "round_robin_gradients")
STAGE_3 = (
    "stage3_prefetch_bucket_size stage3_param_persistence_threshold stage3_max_live_parameters "
    "stage3_max_reuse_distance sub_group_size stage3_gather_16bit_weights_on_model_save".split()
)
ALL_STAGES = ("overlap_comm", "contiguous_gradients", "reduce_bucket_size", "reduce_scatter")
UNSERVED = (
    "zenflow zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights "
    "zero_quantized_gradients compute_grad_norm elastic_checkpoint legacy_stage1".split()
)
"""Keys of `zero_optimization` with which results or checkpoints would not be those that are promised."""


def settings_of(params: DeepSpeedParams, run: Run) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Raises:
        ConfigError: The section or its file disagrees with other sections, or asks for what is not served.
    """
    settings = _from_file(params, run) if params.deepspeed_config_path else _from_section(params, run)
    training = run.config.training
    zero = settings["zero_optimization"]
    zero["memory_efficient_linear"] = False  # it would replace torch's own function for the whole process
    settings |= {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm or 0.0,
    }
    problems = [*_precision_problems(settings, run), *_offload_problems(zero)]
    if problems:
        raise ConfigError(problems)
    return settings


def _from_section(params: DeepSpeedParams, run: Run) -> dict[str, Any]:
    stage = int(params.zero_stage.value)
    keys = () if params.zero_stage is ZeroStage.ZERO_0 else (*ALL_STAGES, *(STAGE_3 if stage == 3 else STAGE_12))
    zero: dict[str, Any] = {key: getattr(params, key) for key in keys if getattr(params, key) != AUTO}
    settings: dict[str, Any] = {"zero_optimization": {"stage": stage, **zero}}
    for name in ("offload_optimizer", "offload_param"):
        offload: OffloadConfig | None = getattr(params, name)
        if offload is not None:
            settings["zero_optimization"][name] = _offload(name, offload, run)
            if offload.device is OffloadDevice.NVME:
                keys = ("block_size", "queue_depth", "single_submit", "overlap_events")
                settings["aio"] = {key: getattr(offload, key) for key in keys}
                settings["aio"]["intra_op_parallelism"] = offload.thread_count
    if params.activation_checkpointing:
        _log.warning(
            "deepspeed.activation_checkpointing: no effect: models checkpoint by training.enable_gradient_checkpointing"
        )
    if params.precision is not None:
        settings[params.precision.value] = {"enabled": True}
    own = ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print", "wall_clock_breakdown")
    return settings | {key: getattr(params, key) for key in own}


def _offload(name: str, offload: OffloadConfig, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {"device": offload.device.value, "pin_memory": offload.pin_memory}
    if offload.device is OffloadDevice.NVME:
        found["nvme_path"] = str((run.output_dir / "offload").absolute())
        found["buffer_count"] = offload.buffer_count if name == "offload_optimizer" else offload.buffer_count_nvme
    return found


def _from_file(params: DeepSpeedParams, run: Run) -> dict[str, Any]:
    file = Path(run.locate(str(params.deepspeed_config_path)))
    try:
        written = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(_problem(f"{file} cannot be read as JSON: {error}.", "")) from error
    if not isinstance(written, dict) or not isinstance(written.get("zero_optimization", {}), dict):
        raise ConfigError(_problem(f"{file} holds no object with an object 'zero_optimization'.", ""))
    _say_what_is_ignored(params)
    problems = [*_unserved(written), *_differences(written, run)]
    if problems:
        raise ConfigError([msgspec.structs.replace(p, message=f"{file.name}: {p.message}") for p in problems])
    settings = {key: _without_auto(value) for key, value in written.items() if value != AUTO}
    settings.setdefault("zero_optimization", {}).setdefault("stage", 0)
    for key in ("optimizer", "scheduler", "train_batch_size"):
        settings.pop(key, None)
    settings.setdefault("zero_allow_untested_optimizer", True)
    for name in ("bf16", "fp16"):
        own = run.config.training.mixed_precision_dtype is MixedPrecisionDtype(name)
        if isinstance(written.get(name), dict) and written[name].get("enabled") == AUTO:
            settings[name]["enabled"] = own
    return settings


def _say_what_is_ignored(params: DeepSpeedParams) -> None:
    default = DeepSpeedParams()
    kept = ("enable_deepspeed", "deepspeed_config_path")
    for key in (key for key in params.__struct_fields__ if key not in kept):
        if getattr(params, key) != getattr(default, key):
            _log.warning("deepspeed.%s: no effect: %s is set, and its file says everything.", key, FILE)


def _unserved(written: Mapping[str, Any]) -> Iterator[Problem]:
    for key in sorted(set(written) - SERVED):
        yield _problem(f"{key}: is not served.", "Remove it.")
    zero = written.get("zero_optimization", {})
    for key in UNSERVED:
        if zero.get(key) not in (None, AUTO, False) and (key, zero[key]) != ("zero_hpz_partition_size", 1):
            yield _problem(f"zero_optimization.{key}: is not served.", "Remove it.")
    offload = zero.get("offload_optimizer")
    for key in ("ratio", "super_offload") if isinstance(offload, dict) else ():
        if offload.get(key) not in (None, AUTO, False, 1, 1.0):
            yield _problem(f"zero_optimization.offload_optimizer.{key}: is not served.", "Remove it.")


def _differences(written: Mapping[str, Any], run: Run) -> Iterator[Problem]:
    """Yield what a file says otherwise than the other sections do."""
    training = run.config.training
    together = training.per_device_train_batch_size * training.gradient_accumulation_steps * run.world.size
    ours: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("processes times micro-batch times accumulation", together),
        "train_micro_batch_size_per_gpu": (
            "training.per_device_train_batch_size",
            training.per_device_train_batch_size,
        ),
        "gradient_accumulation_steps": ("training.gradient_accumulation_steps", training.gradient_accumulation_steps),
        "gradient_clipping": ("training.max_grad_norm", training.max_grad_norm or 0.0),
        "optimizer.params.lr": ("training.learning_rate", training.learning_rate),
        "optimizer.params.weight_decay": ("training.weight_decay", training.weight_decay),
        "optimizer.params.eps": ("training.adam_epsilon", training.adam_epsilon),
        "optimizer.params.betas": ("training.adam_beta1 and 2", [training.adam_beta1, training.adam_beta2]),
    }
    for key, value in _leaves({k: written[k] for k in written if k not in ("zero_optimization", "bf16", "fp16")}):
        if value == AUTO:
            continue
        if key in ours and value != ours[key][1]:
            name, own = ours[key]
            yield _problem(f'{key}: {value} differs from {name}, {own}; write "auto", or leave it out.', "")
        elif key == "optimizer.type" and _letters(str(value)) not in _letters(training.optimizer):
            yield _problem(f"{key}: {value} differs from training.optimizer, {training.optimizer}.", "Leave it out.")
        elif key not in ours and key.startswith(("optimizer.params.", "scheduler.params.")):
            place = "training.optimizer_kwargs" if key.startswith("optimizer.") else "training.lr_scheduler_type"
            yield _problem(f"{key}: {value} would be ignored: {place} is where that is said.", "Leave it out.")


def _precision_problems(settings: Mapping[str, Any], run: Run) -> Iterator[Problem]:
    """Yield where DeepSpeed would compute in another format than the section `training` says."""
    path = FILE if run.config.deepspeed.deepspeed_config_path else "deepspeed.precision"
    key, mixed = "training.mixed_precision_dtype", run.config.training.mixed_precision_dtype
    format = number_format(settings)
    if (mixed is MixedPrecisionDtype.FP16) != (format is DeepSpeedPrecision.FP16):
        other = format.value if format else "that of the weights"
        message = f"{other}, while {key} is {mixed.value}: the loss is scaled for fp16 only where both say so."
        yield Problem(code="rule", path=path, message=message, hint="Set both to fp16, or use bf16.")
    for name in ("bf16", "fp16"):
        off = isinstance(settings.get(name), dict) and settings[name].get("enabled") is False
        if off and mixed.value == name and path == FILE and format is None:
            message = f"{name}.enabled: false differs from {key}, {name}."
            yield _problem(message, 'Write "auto", or leave it out.')


def _offload_problems(zero: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what cannot be moved, or not from here."""
    for name in ("offload_optimizer", "offload_param"):
        offload = zero.get(name) or {}
        if offload.get("device") != "nvme":
            continue
        path = f"deepspeed.{name}.device"
        if zero["stage"] != 3:
            message = "NVMe is for ZERO_3 only; with other stages DeepSpeed would use host memory instead."
            yield Problem(code="not-served", path=path, message=message, hint="Set zero_stage: ZERO_3, or device: CPU.")
            continue
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        if not ALL_OPS["async_io"].is_compatible(verbose=False):
            message = "DeepSpeed's library for reading and writing a disk cannot be built on this machine."
            hint = "Install a C++ compiler and libaio with its headers (libaio-dev), or set device: CPU."
            yield Problem(code="not-served", path=path, message=message, hint=hint)


def check_zero(zero: Mapping[str, Any]) -> None:
    """Let DeepSpeed look at its own section.

    Raises:
        ConfigError: It refuses something; says what.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        problems = [
            Problem(
                code="wrong-type",
                path=FILE,
                message=f"zero_optimization.{'.'.join(map(str, found['loc']))}: {found['msg']}",
            )
            for found in error.errors()
        ]
        raise ConfigError(problems) from error


def number_format(settings: Mapping[str, Any]) -> DeepSpeedPrecision | None:
    """Return the format to which DeepSpeed converts the weights; None: they stay."""
    for format in DeepSpeedPrecision:
        if settings.get(format.value, {}).get("enabled"):
            return format
    return None


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _without_auto(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_auto(inner) for key, inner in value.items() if inner != AUTO}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _problem(message: str, hint: str) -> Problem:
    return Problem(code="rule", path=FILE, message=message, hint=hint)
