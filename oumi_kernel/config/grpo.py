"""The YAML section `training.grpo`: group relative policy optimisation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from oumi_kernel.schema import Fraction, NonNegativeFloat, Params, PositiveInt


class GrpoParams(Params):
    """Settings of GRPO trainers."""

    model_init_kwargs: dict[str, Any] = {}
    """Further arguments for loading the policy."""

    max_prompt_length: PositiveInt | None = None
    """Longest prompt, in tokens. Null: no limit of its own."""

    max_completion_length: PositiveInt | None = None
    """Longest completion, in tokens. Null: the trainer's default."""

    num_generations: PositiveInt | None = None
    """Completions sampled for each prompt. Null: the trainer's default."""

    temperature: Fraction = 0.9
    """Sampling temperature."""

    remove_unused_columns: bool = False
    """Whether to drop the dataset columns that the trainer does not use."""

    repetition_penalty: NonNegativeFloat | None = 1.0
    """Penalty on tokens that were already generated; 1.0 is none."""

    use_vllm: bool = False
    """Whether vLLM generates the completions."""

    vllm_mode: Literal["server", "colocate"] | None = None
    """Where vLLM runs: a server of its own, or beside the trainer. Null: the trainer's default."""

    vllm_gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM may take."""

    epsilon: NonNegativeFloat = 0.2
    """Half width of the interval to which the probability ratio is clipped."""

    log_completions: bool = False
    """Whether to log prompts with their completions."""

    rollout_function: str | None = None
    """Name of a function that generates completions in its own way."""
