"""Rules across fields and sections, one named function each, with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from oumi_kernel.config.data import DatasetSplitParams
from oumi_kernel.config.derived import dtype_name
from oumi_kernel.config.quantisation import QUANTISATION_RULES
from oumi_kernel.config.training import MixedPrecisionDtype
from oumi_kernel.config.training_config import TrainingConfig
from oumi_kernel.config.vocabulary import VOCABULARY
from oumi_kernel.errors import Problem

Rule = Callable[[TrainingConfig], Iterator[Problem]]


def check(config: TrainingConfig) -> Iterator[Problem]:
    """Yield what every rule finds."""
    for rule in RULES:
        yield from rule(config)


def there_is_something_to_train_on(config: TrainingConfig) -> Iterator[Problem]:
    """A run without training data has nothing to do."""
    if not config.data.train.datasets:
        yield _error("data.train.datasets", "at least one training dataset is needed.")


def the_run_has_an_end(config: TrainingConfig) -> Iterator[Problem]:
    """Epochs or steps must be positive."""
    training = config.training
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        yield _error("training.max_steps", "max_steps or num_train_epochs must be positive.")


def mixture_proportions_are_all_or_none(config: TrainingConfig) -> Iterator[Problem]:
    """A dataset without a proportion among others with one would have no probability."""
    for name, split in _splits(config):
        given = [dataset.mixture_proportion for dataset in split.datasets]
        if any(p is not None for p in given) and any(p is None for p in given):
            missing = [index for index, proportion in enumerate(given) if proportion is None]
            for index in missing:
                path = f"data.{name}.datasets[{index}].mixture_proportion"
                yield _error(path, "mixture_proportion must be given for all datasets of the split, or for none.")


def mixture_proportions_sum_to_one(config: TrainingConfig) -> Iterator[Problem]:
    """They are probabilities."""
    for name, split in _splits(config):
        given = [dataset.mixture_proportion for dataset in split.datasets]
        numbers = [proportion for proportion in given if proportion is not None]
        if numbers and len(numbers) == len(given) and not math.isclose(sum(numbers), 1.0):
            message = f"the mixture_proportion of all datasets must sum to 1.0; they sum to {sum(numbers):g}."
            yield _error(f"data.{name}.datasets[0].mixture_proportion", message)


def packing_needs_a_stream(config: TrainingConfig) -> Iterator[Problem]:
    """The specification's rule: examples are packed as they come."""
    for name, split in _splits(config):
        if split.pack and not split.stream:
            yield _error(f"data.{name}.pack", "pack needs stream: true.", hint=f"Set data.{name}.stream: true.")


def every_split_has_the_same_collator(config: TrainingConfig) -> Iterator[Problem]:
    """Losses of splits that are batched differently cannot be compared."""
    train = config.data.train.collator_name
    for name, split in _splits(config):
        path = f"data.{name}.collator_name"
        if name == "train" or split.collator_name is None:
            continue
        if train is None:
            yield _error(
                path, "a collator must also be named on the train split.", hint="Set data.train.collator_name."
            )
        elif _spelling(split.collator_name) != _spelling(train):
            yield _error(
                path, f"'{split.collator_name}' differs from the train split's '{train}'; one collator serves all."
            )


def the_model_is_compiled_by_training(config: TrainingConfig) -> Iterator[Problem]:
    """`model.compile` is for inference."""
    if config.model.compile:
        yield _error("model.compile", "use training.compile to compile the model for training.")


def one_sharding_library(config: TrainingConfig) -> Iterator[Problem]:
    """FSDP and DeepSpeed both divide the model."""
    if config.fsdp.enable_fsdp and config.deepspeed.enable_deepspeed:
        yield _error("deepspeed.enable_deepspeed", "FSDP and DeepSpeed cannot both be on; switch one off.")


def compiling_needs_original_parameters(config: TrainingConfig) -> Iterator[Problem]:
    """A compiled model cannot work with flattened parameters."""
    if config.training.compile and config.fsdp.enable_fsdp and config.fsdp.use_orig_params is False:
        yield _error("fsdp.use_orig_params", "must be true (or null) when training.compile is on.")


def mixed_precision_needs_float32_weights(config: TrainingConfig) -> Iterator[Problem]:
    """Weights in 16 bits lose small updates, which is what mixed precision prevents."""
    is_float32 = dtype_name(config.model.torch_dtype_str) == "float32"
    if config.training.mixed_precision_dtype is not MixedPrecisionDtype.NONE and not is_float32:
        found = config.model.torch_dtype_str
        message = f"mixed precision needs weights in float32; model.torch_dtype_str is {found}."
        yield _error("training.mixed_precision_dtype", message, hint="Set model.torch_dtype_str: float32.")


def deepspeed_batch_size_is_derived(config: TrainingConfig) -> Iterator[Problem]:
    """Batch sizes have one source: the section `training`."""
    deepspeed = config.deepspeed
    if deepspeed.enable_deepspeed and deepspeed.train_batch_size != "auto":
        yield _error("deepspeed.train_batch_size", "is derived from training.*; leave it on auto.")


def deepspeed_agrees_with_training(config: TrainingConfig) -> Iterator[Problem]:
    """Of two different values for one thing, the other would be ignored."""
    deepspeed, training = config.deepspeed, config.training
    pairs = {
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", training.per_device_train_batch_size),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", training.gradient_accumulation_steps),
        "gradient_clipping": ("max_grad_norm", training.max_grad_norm or 0),
    }
    for key, (name, value) in pairs.items() if deepspeed.enable_deepspeed else ():
        written = getattr(deepspeed, key)
        if written not in ("auto", value):
            yield _error(f"deepspeed.{key}", f"{written} differs from training.{name}, {value}; leave it on auto.")


def an_adapter_is_on_or_off(config: TrainingConfig) -> Iterator[Problem]:
    """One key must not ask for what another one refuses."""
    if config.training.use_peft and _spelling(config.peft.peft_method or "") == "none":
        yield _error("peft.peft_method", "'none' turns the adapter off, but training.use_peft is true; remove one.")


def rewards_are_for_grpo(config: TrainingConfig) -> Iterator[Problem]:
    """The other trainers that the language knows have no rewards; what a stranger's trainer takes is its own affair."""
    training = config.training
    trainer = _spelling(training.trainer_type)
    if training.reward_functions and trainer in VOCABULARY["trainers"] and "grpo" not in trainer:
        yield _error("training.reward_functions", f"only GRPO trainers take rewards, not {training.trainer_type}.")
    strangers = set(training.reward_function_kwargs) - set(training.reward_functions or ())
    for name in sorted(strangers):
        yield _error(f"training.reward_function_kwargs.{name}", f"no reward function '{name}' is named.")


def bfloat16_weights_lose_small_updates(config: TrainingConfig) -> Iterator[Problem]:
    """In full fine-tuning the optimizer then keeps its state in bfloat16 too."""
    is_full = not config.training.use_peft and config.peft == type(config.peft)()
    keeps_float32 = config.deepspeed.enable_deepspeed  # its optimizers work on a float32 copy
    if is_full and not keeps_float32 and dtype_name(config.model.torch_dtype_str) == "bfloat16":
        message = "weights and optimizer state will be in bfloat16; small updates are lost."
        hint = "Use float32 with training.mixed_precision_dtype: bf16 where memory allows."
        yield Problem(code="rule", path="model.torch_dtype_str", message=message, hint=hint, severity="warning")


def keys_wait_for_their_switch(config: TrainingConfig) -> Iterator[Problem]:
    """What only refines another key does nothing while that one is off; nobody should believe otherwise."""
    training, model = config.training, config.model
    workers, checkpointing = "dataloader_num_workers is 0", "enable_gradient_checkpointing is false"
    idle = {
        "training.dataloader_prefetch_factor": (training.dataloader_num_workers == 0, f"training.{workers}"),
        "training.dataloader_persistent_workers": (training.dataloader_num_workers == 0, f"training.{workers}"),
        "training.gradient_checkpointing_kwargs": (
            not training.enable_gradient_checkpointing,
            f"training.{checkpointing}",
        ),
        "training.logging_dir": (not training.enable_tensorboard, "training.enable_tensorboard is false"),
        "training.metrics_kwargs": (training.metrics_function is None, "training.metrics_function is null"),
        "model.kernel_kwargs": (not model.enable_liger_kernel, "no kernel is on"),
    }
    for path, (is_off, reason) in idle.items():
        section, _, key = path.rpartition(".")
        if is_off and getattr(getattr(config, section), key):
            yield _idle(path, reason)


def seeds_need_something_random(config: TrainingConfig) -> Iterator[Problem]:
    """A dataset that is not shuffled and a split that is not mixed have one order."""
    for name, split in _splits(config):
        is_mixed = any(dataset.mixture_proportion is not None for dataset in split.datasets)
        if split.datasets and not is_mixed and split.seed is not None:
            yield _idle(f"data.{name}.seed", "no dataset has a mixture_proportion")
        if split.datasets and not is_mixed and split.mixture_strategy != "first_exhausted":
            yield _idle(f"data.{name}.mixture_strategy", "no dataset has a mixture_proportion")
        for index, dataset in enumerate(split.datasets):
            if dataset.seed is not None and not dataset.shuffle:
                yield _idle(f"data.{name}.datasets[{index}].seed", "shuffle is false")


def warm_up_is_given_once(config: TrainingConfig) -> Iterator[Problem]:
    """Of steps and ratio only one can hold."""
    training = config.training
    if training.warmup_steps is not None and training.warmup_ratio is not None:
        message = f"no effect: training.warmup_steps is given too ({training.warmup_steps}) and wins."
        yield Problem(code="rule", path="training.warmup_ratio", message=message, severity="warning")


RULES: tuple[Rule, ...] = (
    there_is_something_to_train_on,
    the_run_has_an_end,
    mixture_proportions_are_all_or_none,
    mixture_proportions_sum_to_one,
    packing_needs_a_stream,
    every_split_has_the_same_collator,
    the_model_is_compiled_by_training,
    one_sharding_library,
    compiling_needs_original_parameters,
    mixed_precision_needs_float32_weights,
    deepspeed_batch_size_is_derived,
    deepspeed_agrees_with_training,
    an_adapter_is_on_or_off,
    rewards_are_for_grpo,
    bfloat16_weights_lose_small_updates,
    keys_wait_for_their_switch,
    seeds_need_something_random,
    warm_up_is_given_once,
    *QUANTISATION_RULES,
)


def _spelling(name: str) -> str:
    """Return the spelling under which names of components are compared."""
    return name.strip().lower().replace("-", "_")


def _splits(config: TrainingConfig) -> Iterator[tuple[str, DatasetSplitParams]]:
    for name in config.data.__struct_fields__:
        yield name, getattr(config.data, name)


def _idle(path: str, reason: str) -> Problem:
    return Problem(code="rule", path=path, message=f"no effect while {reason}.", severity="warning")


def _error(path: str, message: str, *, hint: str = "") -> Problem:
    return Problem(code="rule", path=path, message=message, hint=hint)
