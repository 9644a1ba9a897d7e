"""The typed face of the plugins: one method a hook, which checks that somebody answered and with what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from oumi_kernel.config import DatasetSplitParams, ModelParams
from oumi_kernel.contracts import Collator, Metric, Plan, Row, Run, StepRecord, Strategy, Summary, Trainer
from oumi_kernel.errors import DataError, PluginError
from oumi_kernel.launch import Processes
from oumi_kernel.merged import Merged
from oumi_kernel.plugins.families import FAMILIES
from oumi_kernel.plugins.loading import describe
from oumi_kernel.plugins.manager import Active, Manager
from oumi_kernel.plugins.resolve import Resolution
from oumi_kernel.report import Report

T = TypeVar("T")


class Kernel:
    """The active components of one run, by what they are asked for."""

    def __init__(self, resolution: Resolution) -> None:
        """Activate everything that a configuration selected.

        Raises:
            PluginError: A component cannot be created, or a hook of it does not fit.
        """
        self.manager = Manager()
        # pluggy calls the last registered first, and whoever may fail must be told last: it is registered first.
        order = sorted(resolution.selected, key=lambda choice: not FAMILIES[choice.entry.family].may_fail)
        self._active = {id(choice): self.manager.activate(choice) for choice in order}
        self._resolution = resolution

    def launch(self, command: Sequence[str], processes: Processes) -> int:
        """Run a command in several processes, and return the exit code of the first that failed, or 0."""
        return self._ask("strategies", "oumi_launch", int, command=command, processes=processes)

    def with_model(self, params: ModelParams) -> Kernel:
        """Return a kernel of the model's loader alone, with another section: no adapter, quantisation or kernels."""
        (loader,) = (choice for choice in self._resolution.selected if choice.entry.family == "models")
        chosen = (msgspec.structs.replace(loader, params=params),)
        return Kernel(Resolution(selected=chosen, problems=(), unavailable=(), warnings=()))

    @property
    def has_adapter(self) -> bool:
        """Whether a PEFT method is active."""
        return bool(self._all("peft"))

    def build_strategy(self, run: Run) -> Strategy:
        """Return how steps are done."""
        return self._ask("strategies", "oumi_build_strategy", Strategy, run=run)

    def before_model(self, run: Run) -> None:
        """Let kernels do what must be done before the model is built, or refuse to be used here."""
        for active in self._all("kernels"):
            self.manager.call(active, "oumi_before_model", run=run)

    def build_tokenizer(self, run: Run) -> Any:
        """Return the tokenizer."""
        return self._ask("models", "oumi_build_tokenizer", object, run=run)

    def weights(self, run: Run) -> Mapping[str, str]:
        """Return part -> digest of the weights that training begins with; empty where the model's loader knows none."""
        return self.manager.call(self._all("models")[0], "oumi_weights", run=run) or {}

    def build_trainer(self, tokenizer: Any, run: Run) -> Trainer:
        """Return the training method."""
        return self._ask("trainers", "oumi_build_trainer", Trainer, tokenizer=tokenizer, run=run)

    def load_dataset(self, split: str, index: int, run: Run) -> Sequence[Row]:
        """Return the rows of one entry of a split's `datasets`.

        Raises:
            DataError: They cannot be had; it then knows the key that names them.
        """
        entry = f"data.{split}.datasets[{index}]"
        dataset = getattr(run.config.data, split).datasets[index]
        try:
            return self._answer(
                self._at(f"{entry}.dataset_name"), "oumi_load_dataset", Sequence, dataset=dataset, run=run
            )
        except DataError as error:
            error.path = f"{entry}.{'dataset_name' if dataset.dataset_path is None else 'dataset_path'}"
            raise

    def build_collator(self, split_name: str, split: DatasetSplitParams, tokenizer: Any, run: Run) -> Collator:
        """Return what turns a split's examples into a batch."""
        active = self._at(f"data.{split_name}.collator_name")
        return self._answer(active, "oumi_build_collator", Collator, tokenizer=tokenizer, split=split, run=run)

    def collator_train_target(self, split_name: str) -> str:
        """Return the name of the tokens that a split's collator trains on when the configuration does not say."""
        component = self._at(f"data.{split_name}.collator_name").selected.component
        return getattr(component, "train_target", "all_tokens")

    def build_metrics(self, run: Run) -> Sequence[Metric]:
        """Return a fresh metric for every metric that the configuration names."""
        return [self._answer(active, "oumi_build_metric", Metric, run=run) for active in self._all("metrics")]

    def model_arguments(self, run: Run) -> Mapping[str, Any]:
        """Return what PEFT methods ask the model to be loaded with."""
        arguments: dict[str, Any] = {}
        for active in self._all("peft"):
            arguments.update(self.manager.call(active, "oumi_model_arguments", run=run) or {})
        return arguments

    def build_model(self, tokenizer: Any, examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        """Return the model with kernels and PEFT applied, each at its time."""
        return self._model("oumi_build_model", tokenizer, examples, run)

    def build_skeleton(self, tokenizer: Any, examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        """Return the same without weights, on torch's device `meta`; None where the model's loader builds none."""
        (loader,) = self._all("models")
        if not hasattr(loader.plugin, "oumi_build_skeleton"):
            return None
        return self._model("oumi_build_skeleton", tokenizer, examples, run)

    def reports(self, run: Run) -> dict[str, Report]:
        """Return family -> what its component says of the model that was built."""
        asked = {family: self._all(family) for family in ("models", "kernels", "peft")}
        found = {
            family: self.manager.call(active, "oumi_report", run=run)
            for family, of_one in asked.items()
            for active in of_one
        }
        return {family: report for family, report in found.items() if report is not None}

    def group_parameters(
        self, groups: Sequence[dict[str, Any]], model: Any, plan: Plan, run: Run
    ) -> Sequence[dict[str, Any]]:
        """Return parameter groups as the PEFT method divides them."""
        for active in self._all("peft"):
            arguments = {"groups": groups, "model": model, "plan": plan, "run": run}
            groups = self.manager.call(active, "oumi_group_parameters", **arguments) or groups
        return groups

    def build_optimizer(self, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Return the optimizer over parameter groups."""
        return self._ask("optimizers", "oumi_build_optimizer", object, groups=groups, run=run)

    def build_scheduler(self, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Return the learning rate schedule."""
        arguments = {"optimizer": optimizer, "total_steps": total_steps, "run": run}
        return self._ask("schedulers", "oumi_build_scheduler", object, **arguments)

    def save_model(
        self, model: Any, state: Callable[[], Mapping[str, Any] | None], tokenizer: Any, directory: Path, run: Run
    ) -> None:
        """Write the model as whoever shaped it last knows how: the PEFT method, else the model's loader."""
        arguments = {"model": model, "state": state, "tokenizer": tokenizer, "directory": directory, "run": run}
        self._first_to("oumi_save_model", **arguments)

    def load_weights(self, model: Any, directory: Path, run: Run) -> None:
        """Read back into `model` what `save_model` wrote."""
        self._first_to("oumi_load_weights", model=model, directory=directory, run=run)

    def merge_adapter(self, model: Any, adapter: Path, tokenizer: Any, run: Run) -> tuple[Any, Merged]:
        """Return a base model with the adapter of a folder merged into its weights, and what a check of it found."""
        arguments = {"model": model, "adapter": adapter, "tokenizer": tokenizer, "run": run}
        return self._ask("peft", "oumi_merge_adapter", tuple, **arguments)

    def train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Tell everybody that training begins at `step`."""
        self.manager.broadcast("oumi_train_start", run=run, plan=plan, step=step)

    def step_end(self, run: Run, record: StepRecord) -> None:
        """Tell everybody that a step is done."""
        self.manager.broadcast("oumi_step_end", run=run, record=record)

    def evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """Tell everybody what an evaluation found."""
        self.manager.broadcast("oumi_evaluate_end", run=run, step=step, figures=figures)

    def checkpoint_saved(self, run: Run, step: int, directory: Path) -> None:
        """Tell everybody that a checkpoint is complete."""
        self.manager.broadcast("oumi_checkpoint_saved", run=run, step=step, directory=directory)

    def train_end(self, run: Run, summary: Summary) -> None:
        """Tell everybody that training is done."""
        self.manager.broadcast("oumi_train_end", run=run, summary=summary)

    def train_error(self, run: Run, error: BaseException) -> None:
        """Tell everybody that the run ends with an error."""
        self.manager.broadcast("oumi_train_error", run=run, error=error)

    def _model(self, hook: str, tokenizer: Any, examples: Mapping[str, Sequence[Any]], run: Run) -> Any:
        arguments = self.model_arguments(run)
        model = self._ask("models", hook, object, tokenizer=tokenizer, arguments=arguments, run=run)
        for active in self._all("kernels"):
            model = self.manager.call(active, "oumi_apply_kernel", model=model, run=run) or model
        for active in self._all("peft"):
            added = self.manager.call(self._all("models")[0], "oumi_added_tokens", tokenizer=tokenizer, run=run) or {}
            arguments = {"model": model, "added_tokens": added, "examples": examples, "run": run}
            model = self._answer(active, "oumi_apply_peft", object, **arguments)
        return model

    def _all(self, family: str) -> list[Active]:
        return [self._active[id(c)] for c in self._resolution.selected if c.entry.family == family]

    def _at(self, path: str) -> Active:
        return self._active[id(self._resolution.at(path))]

    def _ask(self, family: str, hook: str, kind: type[T], **arguments: Any) -> T:
        return self._answer(self._all(family)[0], hook, kind, **arguments)

    def _answer(self, active: Active, hook: str, kind: type[T], **arguments: Any) -> T:
        result = self.manager.call(active, hook, **arguments)
        if result is None:
            raise PluginError(f"{describe(active.selected.entry)}: {hook} returned nothing.")
        if not isinstance(result, kind):
            methods = [name for name in dir(kind) if not name.startswith("_") or name == "__call__"]
            missing = ", ".join(name for name in methods if not hasattr(result, name))
            found = f"a {type(result).__name__}" + (f", which lacks {missing}" if missing else "")
            label = describe(active.selected.entry)
            raise PluginError(f"{label}: {hook} returned {found}; expected a {kind.__name__}.")
        return result

    def _first_to(self, hook: str, **arguments: Any) -> None:
        for active in (*self._all("peft"), *self._all("models")):
            if self.manager.call(active, hook, **arguments):
                return
        raise PluginError(f"no active component answers {hook}: neither the PEFT method nor the model's loader.")
