"""Every hook, in the order of a run. Build hooks are addressed to one component, events go to all active ones.

Every argument is passed by name; an implementation takes only those it needs. `params` is the component's own
decoded struct (for `models` and `strategies` the section of the configuration), `run` a
`oumi_kernel.contracts.Run`. Torch objects are `Any` here: the kernel never looks inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oumi_kernel.component import hookspec
from oumi_kernel.config import DatasetParams, DatasetSplitParams
from oumi_kernel.contracts import Collator, Metric, Plan, Row, Run, StepRecord, Strategy, Summary, Trainer
from oumi_kernel.launch import Processes
from oumi_kernel.merged import Merged
from oumi_kernel.report import Report


class BuildHooks:
    """Addressed hooks: the selected component answers, nobody else is asked."""

    @hookspec(firstresult=True)
    def oumi_launch(self, params: Any, command: Sequence[str], processes: Processes) -> int | None:
        """Family `strategies`: run `command` in several processes and return the exit code. Optional.

        Each of them finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, as torchrun
        gives them. See `oumi_kernel.launch` for how they are told to stop, and say why they failed.
        """

    @hookspec(firstresult=True)
    def oumi_build_strategy(self, params: Any, run: Run) -> Strategy | None:
        """Family `strategies`: return how steps are done on the hardware at hand."""

    @hookspec(firstresult=True)
    def oumi_build_tokenizer(self, params: Any, run: Run) -> Any:
        """Family `models`: return the tokenizer, its chat template set."""

    @hookspec(firstresult=True)
    def oumi_weights(self, params: Any, run: Run) -> Mapping[str, str] | None:
        """Family `models`: return part -> digest of the weights that training begins with. Optional.

        `run.json` keeps them, so that a repeat with other weights under the same name is noticed.
        """

    @hookspec(firstresult=True)
    def oumi_build_trainer(self, params: Any, tokenizer: Any, run: Run) -> Trainer | None:
        """Family `trainers`: return the training method."""

    @hookspec(firstresult=True)
    def oumi_load_dataset(self, params: Any, dataset: DatasetParams, run: Run) -> Sequence[Row] | None:
        """Family `datasets`: return the rows of one entry of `datasets`, all of its split, unshuffled.

        Raise `DataError` for a file that is missing or a row that cannot be read.
        """

    @hookspec(firstresult=True)
    def oumi_build_collator(self, params: Any, tokenizer: Any, split: DatasetSplitParams, run: Run) -> Collator | None:
        """Family `collators`: return what turns examples into a batch."""

    @hookspec(firstresult=True)
    def oumi_build_metric(self, params: Any, run: Run) -> Metric | None:
        """Family `metrics`: return a fresh metric; called once for every evaluation."""

    @hookspec(firstresult=True)
    def oumi_model_arguments(self, params: Any, run: Run) -> Mapping[str, Any] | None:
        """Family `peft`: return what the model must be loaded with, such as a quantisation config. Optional."""

    @hookspec(firstresult=True)
    def oumi_before_model(self, params: Any, run: Run) -> None:
        """Family `kernels`: do what must be done before the model is built, such as registering an attention. Optional.

        It is called before data is prepared: raise `ConfigError` here for what cannot run on this machine.
        """

    @hookspec(firstresult=True)
    def oumi_build_model(self, params: Any, tokenizer: Any, arguments: Mapping[str, Any], run: Run) -> Any:
        """Family `models`: return the model, on the CPU unless `arguments` place it."""

    @hookspec(firstresult=True)
    def oumi_build_skeleton(self, params: Any, tokenizer: Any, arguments: Mapping[str, Any], run: Run) -> Any:
        """Family `models`: return the model that `oumi_build_model` would, on torch's device `meta`. Optional.

        Names, shapes and dtypes of parameters and buffers, ties and frozen layers are those of the model; no weight
        is read, allocated or downloaded. Raise what `oumi_build_model` would raise. A dry run is built on it.
        """

    @hookspec(firstresult=True)
    def oumi_added_tokens(self, params: Any, tokenizer: Any, run: Run) -> Mapping[str, int] | None:
        """Family `models`: return token -> row of those that the model has not learned, padding left out. Optional."""

    @hookspec(firstresult=True)
    def oumi_apply_kernel(self, params: Any, model: Any, run: Run) -> Any:
        """Family `kernels`: return the model with faster parts put in, on the device `meta` too. Optional."""

    @hookspec(firstresult=True)
    def oumi_apply_peft(
        self,
        params: Any,
        model: Any,
        added_tokens: Mapping[str, int],
        examples: Mapping[str, Sequence[Any]],
        run: Run,
    ) -> Any:
        """Family `peft`: return the model with its adapter, everything else frozen.

        `added_tokens` are those whose rows nothing has trained yet, by their rows: train them, or refuse. `examples`
        are split -> prepared examples, for methods that begin with what the data is like.
        """

    @hookspec(firstresult=True)
    def oumi_merge_adapter(
        self, params: Any, model: Any, adapter: Path, tokenizer: Any, run: Run
    ) -> tuple[Any, Merged] | None:
        """Family `peft`: merge a saved adapter into its base; return the model in the base's precision, and a check.

        Raise `NumericsError` where adapter and merged weights compute something else.
        """

    @hookspec(firstresult=True)
    def oumi_report(self, params: Any, run: Run) -> Report | None:
        """Families `models`, `kernels` and `peft`: say what became of the model, now that it is built. Optional."""

    @hookspec(firstresult=True)
    def oumi_group_parameters(
        self, params: Any, groups: Sequence[dict[str, Any]], model: Any, plan: Plan, run: Run
    ) -> Sequence[dict[str, Any]] | None:
        """Family `peft`: return the trainer's parameter groups divided, those with a rate of their own with `lr`.

        Optional. It is also where a method learns how long the run is, in a dry run too.
        """

    @hookspec(firstresult=True)
    def oumi_build_optimizer(self, params: Any, groups: Sequence[dict[str, Any]], run: Run) -> Any:
        """Family `optimizers`: return a `torch.optim.Optimizer` over `groups` (`params` are (name, tensor) pairs).

        What its `state_dict` gives is kept in checkpoints: tensors, numbers, texts, and mappings of these. One that
        keeps an average of the weights has `eval()`, which puts it into the model, and `train()`, which takes it out.
        Several processes must take the same step: what it draws by chance follows from a seed of its own.
        """

    @hookspec(firstresult=True)
    def oumi_build_scheduler(self, params: Any, optimizer: Any, total_steps: int, run: Run) -> Any:
        """Family `schedulers`: return a `torch.optim.lr_scheduler.LRScheduler`, stepped once an optimizer step."""

    @hookspec(firstresult=True)
    def oumi_save_model(
        self,
        params: Any,
        model: Any,
        state: Callable[[], Mapping[str, Any] | None],
        tokenizer: Any,
        directory: Path,
        run: Run,
    ) -> bool | None:
        """Families `models` and `peft` (which goes first): write what `from_pretrained` opens; return True.

        `state()` gathers name -> whole tensor, on rank 0; every rank must call it once, and only rank 0 writes.
        """

    @hookspec(firstresult=True)
    def oumi_load_weights(self, params: Any, model: Any, directory: Path, run: Run) -> bool | None:
        """The same component: read back into `model` what `oumi_save_model` wrote; return True.

        A dry run gives a model on torch's device `meta`: raise what would be raised for the real one, read no weight.
        """


class Events:
    """Broadcast hooks: every active component may listen."""

    @hookspec
    def oumi_train_start(self, run: Run, plan: Plan, step: int) -> None:
        """Training begins at `step` (not 0 after a resume)."""

    @hookspec
    def oumi_step_end(self, run: Run, record: StepRecord) -> None:
        """One optimizer step is done."""

    @hookspec
    def oumi_evaluate_end(self, run: Run, step: int, figures: Mapping[str, float]) -> None:
        """An evaluation is done."""

    @hookspec
    def oumi_checkpoint_saved(self, run: Run, step: int, directory: Path) -> None:
        """A complete checkpoint stands in `directory`; told in the first process."""

    @hookspec
    def oumi_train_end(self, run: Run, summary: Summary) -> None:
        """Training is done; the model is not saved yet."""

    @hookspec
    def oumi_train_error(self, run: Run, error: BaseException) -> None:
        """The run ends with an error, or was asked to stop. Close files; do not raise."""
