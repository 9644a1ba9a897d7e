"""The YAML section `training.gold`: distillation between models with different tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from oumi_kernel.config.gkd import ModelName, Temperature
from oumi_kernel.schema import Fraction, NonNegativeFloat, NonNegativeInt, Params, PositiveFloat, PositiveInt


class GoldParams(Params):
    """Settings of the GOLD trainer (general online logit distillation)."""

    teacher_model_name_or_path: ModelName | None = None
    """Hub id or path of the teacher."""

    teacher_model_init_kwargs: dict[str, Any] = msgspec.field(default_factory=lambda: {"torch_dtype": "auto"})
    """Further arguments for loading the teacher."""

    teacher_tokenizer_name_or_path: ModelName | None = None
    """The teacher's tokenizer. Null: the teacher's own."""

    temperature: Temperature = 0.9
    """Sampling temperature of the student."""

    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    """Probability mass from which tokens are sampled."""

    top_k: NonNegativeInt = 0
    """Number of most likely tokens from which to sample; 0 is all."""

    lmbda: Fraction = 0.5
    """Share of batches that the student generates itself."""

    beta: Fraction = 0.5
    """Between forward (0) and reverse (1) KL divergence."""

    max_completion_length: PositiveInt = 128
    """Longest completion, in tokens."""

    disable_dropout: bool = True
    """Whether dropout is off in the student."""

    seq_kd: bool = False
    """Whether to train on text that the teacher generated."""

    use_uld_loss: bool = False
    """Whether to use the universal logit distillation loss, for different tokenizers."""

    use_extended_uld: bool = True
    """Whether that loss aligns text that is split into tokens differently."""

    uld_use_hybrid_loss: bool = False
    """Whether tokens that both vocabularies hold are compared directly."""

    uld_hybrid_matched_weight: NonNegativeFloat | None = None
    """Weight of shared tokens in the hybrid loss. Set with the unmatched weight, or not at all."""

    uld_hybrid_unmatched_weight: NonNegativeFloat | None = None
    """Weight of the other tokens in the hybrid loss. Set with the matched weight, or not at all."""

    uld_crossentropy_weight: NonNegativeFloat = 0.0
    """Weight of the cross entropy on the labels."""

    uld_distillation_weight: NonNegativeFloat = 1.0
    """Weight of the distillation loss."""

    uld_student_temperature: PositiveFloat = 1.0
    """Temperature of the student's distribution in the loss."""

    uld_teacher_temperature: PositiveFloat = 1.0
    """Temperature of the teacher's distribution in the loss."""

    uld_skip_student_eos: bool = True
    """Whether the student's end token is left out of the loss."""

    uld_skip_teacher_eos: bool = True
    """Whether the teacher's end token is left out of the loss."""

    use_transformers_paged: bool = False
    """No longer has a meaning; accepted for old files."""

    use_vllm: bool = False
    """Whether vLLM generates the student's text."""

    vllm_mode: Literal["server", "colocate"] = "server"
    """Where vLLM runs: a server of its own, or beside the trainer."""

    vllm_server_host: str = "0.0.0.0"  # noqa: S104 - the documented default, used to reach a server, not to listen
    """Host of the vLLM server."""

    vllm_server_port: Annotated[int, Meta(ge=1, le=65535)] = 8001
    """Port of the vLLM server."""

    vllm_server_timeout: PositiveFloat = 240.0
    """Seconds to wait for the vLLM server."""

    vllm_gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM may take."""

    vllm_tensor_parallel_size: PositiveInt = 1
    """GPUs over which vLLM spreads the model."""

    vllm_guided_decoding_regex: str | None = None
    """A pattern that generated text must match."""

    vllm_sync_frequency: PositiveInt = 1
    """Optimizer steps between updates of vLLM's weights."""

    vllm_enable_sleep_mode: bool = False
    """Whether vLLM frees its memory while the student trains."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse one hybrid weight without the other."""
        if (self.uld_hybrid_matched_weight is None) != (self.uld_hybrid_unmatched_weight is None):
            yield "uld_hybrid_matched_weight", "set both hybrid weights, or neither."
