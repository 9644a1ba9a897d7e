"""BOFT."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from oumi_kernel import ConfigError, Problem, hookimpl
from oumi_kernel.contracts import Run
from oumi_plugins.peft._method import Method


class BOFT(Method):
    """Orthogonal fine-tuning by butterfly factors (arXiv 2311.06243)."""

    module = "peft.tuners.boft.config"
    config_class = "BOFTConfig"

    @hookimpl
    def oumi_apply_peft(
        self,
        params: Any,
        model: Any,
        added_tokens: Mapping[str, int],
        examples: Mapping[str, Sequence[Any]],
        run: Run,
    ) -> Any:
        """Return the library's model, with as many butterfly factors as were asked for."""
        with _compilers_kept():
            adapted = super().oumi_apply_peft(params, model, added_tokens, examples, run)
        asked = adapted.active_peft_config.boft_n_butterfly_factor
        made = {value.shape[0] for name, value in adapted.named_parameters() if ".boft_R." in name}
        if made != {asked}:
            message = (
                f"peft builds {asked} butterfly factors only with its CUDA extension, which does not compile here."
            )
            hint = "Set it to 1, or install nvcc and ninja on a machine with a GPU."
            path = "peft.peft_kwargs.boft_n_butterfly_factor"
            raise ConfigError(Problem(code="not-served", path=path, message=message, hint=hint))
        return adapted


@contextmanager
def _compilers_kept() -> Generator[None]:
    """Put CC and CXX back.

    Where its extension does not compile, the library leaves both at `gcc`, and with that torch links no C++ library.
    """
    before = {name: os.environ.get(name) for name in ("CC", "CXX")}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
