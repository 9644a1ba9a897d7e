"""BOFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oumi_kernel import ConfigError, Problem
from oumi_kernel.contracts import Run
from oumi_plugins.peft._method import Method


class BOFT(Method):
    """Orthogonal fine-tuning by butterfly factors (arXiv 2311.06243)."""

    module = "peft.tuners.boft.config"
    config_class = "BOFTConfig"

    def build(self, model: Any, settings: Mapping[str, Any], examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        """Return the model with its adapter, with as many butterfly factors as were asked for."""
        built = super().build(model, settings, examples, run)
        asked = built.model.active_peft_config.boft_n_butterfly_factor
        made = {value.shape[0] for name, value in built.model.named_parameters() if ".boft_R." in name}
        if made != {asked}:
            message = (
                f"peft builds {asked} butterfly factors only with its CUDA extension, which does not compile here."
            )
            hint = "Set it to 1, or install nvcc and ninja on a machine with a GPU."
            path = "peft.peft_kwargs.boft_n_butterfly_factor"
            raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
        return built
