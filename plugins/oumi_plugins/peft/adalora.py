"""AdaLoRA."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oumi_kernel import hookimpl
from oumi_kernel.config.deepspeed import ZeroStage
from oumi_kernel.contracts import Plan, Run
from oumi_plugins.peft._method import SECTION, Method
from oumi_plugins.peft.lora import Lora

UNUSED = ("lora_r", "lora_init_weights", "lora_target_parameters")
UNKNOWN_STEPS = 2**31
"""Stands in for the length of the run until that is known."""


class AdaLora(Method):
    """AdaLoRA (arXiv 2303.10512): LoRA that begins with rank `init_r` and leaves ranks where they matter.

    Its matrices are kept orthogonal by a term that is added to the gradient after it is clipped; the logged loss is
    that of the tokens. The number of steps is that of the run.
    """

    module = "peft.tuners.adalora.config"
    config_class = "AdaLoraConfig"
    keys = tuple(key for key in SECTION if key not in UNUSED)
    without = (
        *Lora.without,
        *(SECTION[key] for key in UNUSED),
        *(
            "total_step rank_pattern alpha_pattern layer_replication trainable_token_indices loftq_config eva_config "
            "use_dora use_bdlora use_rslora lora_bias ensure_weight_tying"
        ).split(),
    )

    not_in_parts = "it measures whole matrices and gradients, not the parts that a process has; LoRA does with parts."
    whole_with = ZeroStage.ZERO_0

    def __init__(self) -> None:
        super().__init__()
        self._optimizer: Any = None
        self._allocation: Any = None

    def build(self, model: Any, settings: Mapping[str, Any], examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        """Return the model with its adapter; a count of ranks that the library keeps as a parameter never trains."""
        built = super().build(model, settings, examples, run)
        for name, parameter in built.model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return built

    @hookimpl
    def oumi_group_parameters(
        self, params: Any, groups: Sequence[dict[str, Any]], model: Any, plan: Plan
    ) -> Sequence[dict[str, Any]]:
        """Learn how long the run is, and refuse a schedule of ranks that does not fit into it."""
        from oumi_plugins.peft._allocation import check_schedule

        check_schedule(params, plan.total_steps)
        model.active_peft_config.total_step = plan.total_steps
        return groups

    @hookimpl(wrapper=True)
    def oumi_build_optimizer(self) -> Generator[None, Any, Any]:
        """Get to know the optimizer, whose steps the ranks follow."""
        self._optimizer = yield
        return self._optimizer

    @hookimpl
    def oumi_train_start(self, run: Run, step: int) -> None:
        """Begin to allocate ranks."""
        super().oumi_train_start(run, step)
        self._state().begin(self._optimizer, step)

    @hookimpl
    def oumi_save_model(
        self, model: Any, state: Callable[[], Mapping[str, Any] | None], tokenizer: Any, directory: Path, run: Run
    ) -> bool:
        """Write the adapter with the ranks that are left, and in a checkpoint all that the allocation goes on from."""
        weights = state()
        super().oumi_save_model(model, lambda: weights, tokenizer, directory, run)
        if run.world.is_main and not self._is_done:
            self._state().save(directory)
        return True

    @hookimpl
    def oumi_load_weights(self, model: Any, directory: Path) -> bool:
        """Read what a checkpoint holds back into the model and the allocation."""
        self._state().load(directory)
        return True

    def settings(self, params: Any, run: Run) -> dict[str, Any]:
        """Return the fields of the config, the length of the run still unknown."""
        return super().settings(params, run) | {"total_step": UNKNOWN_STEPS}

    def _state(self) -> Any:
        from oumi_plugins.peft._allocation import Allocation

        if self._allocation is None:
            self._allocation = Allocation(self._built.model)
        return self._allocation

    def _shapes(self, weights: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        from oumi_plugins.peft._saving import adapter_state, shapes_of

        return shapes_of(adapter_state(self._built.model, weights))  # they shrink with the ranks
