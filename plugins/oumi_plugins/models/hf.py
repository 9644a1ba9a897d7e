"""Models and tokenizers of transformers, from a folder or a hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oumi_kernel import Component, hookimpl
from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_kernel.report import Report


class HF(Component):
    """A causal language model and its tokenizer, loaded by transformers."""

    unserved = {
        "model.processor_kwargs": "no component builds processors of vision-language models yet.",
    }
    without_effect = {
        "model.shard_for_eval": "it is for evaluation harnesses.",
        "model.tool_call_parser": "it is for inference engines.",
    }

    def __init__(self) -> None:
        self._use_cache: bool | None = None
        self._frozen: dict[str, int] = {}

    @hookimpl
    def oumi_build_tokenizer(self, params: ModelParams, run: Run) -> Any:
        """Return the tokenizer with its chat template, length limit and padding token set.

        The rest of the section is checked as well, so that a mistake in it is found before data is prepared.
        """
        from oumi_plugins.models._architecture import check_model
        from oumi_plugins.models._logs import follow
        from oumi_plugins.models._tokenizer import build_tokenizer

        follow(run.config.training)
        tokenizer = build_tokenizer(params, run)
        check_model(params, run)
        return tokenizer

    @hookimpl
    def oumi_weights(self, params: ModelParams, run: Run) -> Mapping[str, str]:
        """Return digests of the files of a folder, or the commit of a hub's model."""
        from oumi_plugins.models._weights import weights_of

        return weights_of(params, run)

    @hookimpl
    def oumi_added_tokens(self, params: ModelParams, tokenizer: Any, run: Run) -> Mapping[str, int]:
        """Return token -> row of those that the configuration, or a larger tokenizer, adds to the model."""
        from oumi_plugins.models._added_tokens import added_tokens

        return added_tokens(params, tokenizer, run)

    @hookimpl
    def oumi_build_model(self, params: ModelParams, tokenizer: Any, arguments: Mapping[str, Any], run: Run) -> Any:
        """Return the model on the CPU, with frozen layers frozen and its cache of keys and values off."""
        from oumi_plugins.models._architecture import check_model
        from oumi_plugins.models._model import build_model

        config = check_model(params, run)
        self._use_cache = getattr(config, "use_cache", None)
        model, self._frozen = build_model(params, config, tokenizer, arguments, run)
        return model

    @hookimpl
    def oumi_build_skeleton(self, params: ModelParams, tokenizer: Any, arguments: Mapping[str, Any], run: Run) -> Any:
        """Return the same model on the device `meta`."""
        from oumi_plugins.models._architecture import check_model
        from oumi_plugins.models._model import build_skeleton

        model, self._frozen = build_skeleton(params, check_model(params, run), tokenizer, arguments, run)
        return model

    @hookimpl
    def oumi_report(self) -> Report | None:
        """Say which modules are frozen."""
        lines = tuple(f"{pattern}: {count:,} modules" for pattern, count in self._frozen.items())
        facts = {"model.freeze_layers": self._frozen}
        return Report(title="frozen", lines=lines, facts=facts) if lines else None

    @hookimpl
    def oumi_save_model(
        self, model: Any, state: Callable[[], Mapping[str, Any] | None], tokenizer: Any, directory: Path, run: Run
    ) -> bool:
        """Write a folder that `AutoModelForCausalLM.from_pretrained` opens, and open it to check."""
        from oumi_plugins.models._saving import save_model

        weights = state()
        if run.world.is_main and weights is not None:
            save_model(model, weights, tokenizer, directory, use_cache=self._use_cache)
        return True

    @hookimpl
    def oumi_load_weights(self, model: Any, directory: Path) -> bool:
        """Read the weights of such a folder back into the model, every one of them."""
        from oumi_plugins.models._saving import load_weights

        load_weights(model, directory)
        return True
