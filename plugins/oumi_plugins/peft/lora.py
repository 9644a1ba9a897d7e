"""LoRA, and what belongs to it: DoRA, rsLoRA, LoRA+."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel import Params, hookimpl
from oumi_kernel.contracts import Run
from oumi_kernel.schema import FINITE, NonNegativeFloat
from oumi_plugins.peft._method import SECTION, Method


class LoraPlusParams(Params):
    """Parameters of LoRA+ (arXiv 2402.12354), which trains the second matrix of each pair faster than the first."""

    lora_plus_ratio: Annotated[float, Meta(ge=1, le=FINITE)] | None = None
    """Learning rate of the second matrices, as a multiple of `training.learning_rate`. Null: the same for all."""

    lora_plus_embedding_rate: NonNegativeFloat = 1e-6
    """Learning rate of both matrices of an embedding, when lora_plus_ratio is given."""


class Lora(Method):
    """Low-rank adaptation (arXiv 2106.09685): matrices of rank `lora_r` beside the frozen ones of the model.

    `use_dora` gives each adapted matrix a magnitude of its own (arXiv 2402.09353), `use_rslora` divides the scale by
    the root of the rank (arXiv 2312.03732), `lora_plus_ratio` trains the second matrices faster.
    """

    module = "peft.tuners.lora.config"
    config_class = "LoraConfig"
    keys = tuple(SECTION)
    own_params = LoraPlusParams
    without = (
        "megatron_config megatron_core corda_config lora_ga_config alora_invocation_tokens use_qalora "
        "qalora_group_size monteclora_config arrow_config kasa_config velora_config runtime_config"
    ).split()

    def check(self, run: Run) -> None:
        """Refuse starts that cannot be had, before the model is read."""
        from oumi_plugins.peft._starts import check_start_of

        super().check(run)
        check_start_of(run.config.peft.lora_init_weights)

    @hookimpl
    def oumi_group_parameters(
        self, params: Any, groups: Sequence[dict[str, Any]], run: Run
    ) -> Sequence[dict[str, Any]] | None:
        """Return the groups, the second matrices apart with the rate of LoRA+."""
        if params.lora_plus_ratio is None:
            return None
        rate = run.config.training.learning_rate
        rates = {"first": rate, "second": rate * params.lora_plus_ratio, "embedding": params.lora_plus_embedding_rate}
        divided: list[dict[str, Any]] = []
        for kind, own_rate in rates.items():
            for group in groups:
                members = [(name, weight) for name, weight in group["params"] if _kind(name, weight) == kind]
                divided += [group | {"params": members, "lr": own_rate}] if members else []
        return divided


def _kind(name: str, weight: Any) -> str:
    """Return which rate of LoRA+ a weight has: as the library divides them."""
    if "lora_embedding_" in name:
        return "embedding"
    return "second" if "lora_B" in name or weight.ndim == 1 else "first"
