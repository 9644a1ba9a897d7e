"""The YAML section `training.gkd`: generalised knowledge distillation."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from oumi_kernel.schema import Fraction, Params, PositiveInt

ModelName = Annotated[str, Meta(pattern=r"\S")]
Temperature = Annotated[float, Meta(gt=0, le=1)]


class GkdParams(Params):
    """Settings of the GKD trainer (arXiv 2306.13649)."""

    teacher_model_name_or_path: ModelName | None = None
    """Hub id or path of the teacher."""

    teacher_model_init_kwargs: dict[str, Any] = msgspec.field(default_factory=lambda: {"dtype": "auto"})
    """Further arguments for loading the teacher."""

    temperature: Temperature = 0.9
    """Sampling temperature of the student."""

    lmbda: Fraction = 0.5
    """Share of batches that the student generates itself."""

    beta: Fraction = 0.5
    """Between forward (0) and reverse (1) KL divergence."""

    max_new_tokens: PositiveInt = 128
    """Longest generation, in tokens."""

    disable_dropout: bool = True
    """Whether dropout is off in the student."""

    seq_kd: bool = False
    """Whether to train on text that the teacher generated."""
