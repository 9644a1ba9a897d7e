"""The YAML section `fsdp`: fully sharded data parallel training."""

from __future__ import annotations

from typing import Literal

from oumi_kernel.schema import ConfigEnum, Params, PositiveInt


class ShardingStrategy(ConfigEnum):
    """What is divided between processes."""

    FULL_SHARD = "FULL_SHARD"
    SHARD_GRAD_OP = "SHARD_GRAD_OP"
    HYBRID_SHARD = "HYBRID_SHARD"
    NO_SHARD = "NO_SHARD"
    HYBRID_SHARD_ZERO2 = "HYBRID_SHARD_ZERO2"


class BackwardPrefetch(ConfigEnum):
    """When the next parameters are fetched in the backward pass."""

    BACKWARD_PRE = "BACKWARD_PRE"
    BACKWARD_POST = "BACKWARD_POST"
    NO_PREFETCH = "NO_PREFETCH"


class StateDictType(ConfigEnum):
    """How a checkpoint is written."""

    FULL_STATE_DICT = "FULL_STATE_DICT"
    SHARDED_STATE_DICT = "SHARDED_STATE_DICT"
    LOCAL_STATE_DICT = "LOCAL_STATE_DICT"


class AutoWrapPolicy(ConfigEnum):
    """Which modules become units of sharding."""

    NO_WRAP = "NO_WRAP"
    SIZE_BASED_WRAP = "SIZE_BASED_WRAP"
    TRANSFORMER_BASED_WRAP = "TRANSFORMER_BASED_WRAP"


class FSDPParams(Params):
    """Fully sharded data parallel training."""

    enable_fsdp: bool = False
    """Whether parameters are divided between processes."""

    sharding_strategy: ShardingStrategy = ShardingStrategy.FULL_SHARD
    """What is divided: FULL_SHARD parameters, gradients and optimizer state; SHARD_GRAD_OP the last two; HYBRID_SHARD
    within a node; HYBRID_SHARD_ZERO2 the last two within a node; NO_SHARD nothing."""

    cpu_offload: bool = False
    """Whether parameters rest in the host's memory."""

    mixed_precision: Literal["bf16", "fp16"] | None = None
    """The number format in which shards compute. Null: that of the weights."""

    backward_prefetch: BackwardPrefetch = BackwardPrefetch.BACKWARD_PRE
    """When the next parameters are fetched in the backward pass."""

    forward_prefetch: bool = False
    """Whether the next parameters are fetched early in the forward pass."""

    use_orig_params: bool | None = None
    """Whether parameters keep their own names and shapes. Null: decided by what else is on."""

    state_dict_type: StateDictType = StateDictType.FULL_STATE_DICT
    """How a checkpoint is written: whole, or in shards."""

    auto_wrap_policy: AutoWrapPolicy = AutoWrapPolicy.NO_WRAP
    """Which modules become units of sharding: none, by size, or each transformer layer."""

    min_num_params: PositiveInt = 100000
    """Fewest parameters of a unit, for SIZE_BASED_WRAP."""

    transformer_layer_cls: str | None = None
    """Class names of transformer layers, separated by commas. Null: found from the model."""

    sync_module_states: bool = True
    """Whether every process starts from the first one's weights."""
