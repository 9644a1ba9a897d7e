"""The objects that hooks return and the records that pass between them. No torch: tensors and models pass unseen.

Shapes are written as (batch, tokens). "Supervised" positions are those whose label is not the ignore index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from oumi_kernel.config import TrainingConfig, TrainTarget
from oumi_kernel.plan import Plan
from oumi_kernel.stopping import Stop

Row = Mapping[str, Any]
"""One row of a dataset as its component yields it: `{"messages": [...]}`, `{"text": ...}`, or tokens (`input_ids`, and
`labels` where not all of them are trained on). It holds text, numbers, dates, arrays, lists and objects of these."""


class World(msgspec.Struct, frozen=True):
    """Which process this is.

    Attributes:
        rank: 0 to size - 1; rank 0 writes files and prints.
        local_rank: Rank on this machine, which is its device index.
        size: Number of processes.
        nodes: Number of machines, each with as many of them.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    nodes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What every hook may know about the run it is part of.

    Attributes:
        config: The whole effective configuration.
        folder: The folder of the configuration file, against which `./name` in it is read.
        world: Which process this is.
        rehearsal: Whether this is a dry run: nothing is trained, and processes do not meet.
    """

    config: TrainingConfig
    folder: Path
    world: World = World()
    rehearsal: bool = False

    @property
    def output_dir(self) -> Path:
        """Where the run writes, relative to the current directory as the user typed it."""
        return Path(self.config.training.output_dir)

    def locate(self, name: str) -> str:
        """Return an absolute path for a `name` that begins with `./`, `../` or `~`; any other is returned unchanged.

        A name beginning with a dot is looked up beside the configuration file, then in the current directory.
        """
        if name.startswith("~"):
            return str(Path(name).expanduser())
        if not name.startswith(("./", "../")):
            return name
        beside = self.folder / name
        found = beside if beside.exists() or not Path(name).exists() else Path(name)
        return str(found.absolute())  # "./x" must not become "x", which would be a hub id


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known after one optimizer step. Loss and norm are there on logging steps only: reading them waits.

    Attributes:
        step: Optimizer steps done, from 1.
        epoch: Passes over the data done, a fraction.
        learning_rate: The rate that this step used.
        tokens: Tokens that the model has read since the run began, without padding.
        tokens_per_second: Such tokens per second since the last record with a loss.
        loss: Mean loss per supervised token of the steps taken since the last record with a loss; nan if none was;
            None between logging steps.
        grad_norm: Norm of the gradient before clipping, not finite if this step was not taken; None between logging
            steps.
        skipped: Steps since the run began that were not taken, because loss or gradient was not finite.
    """

    step: int
    epoch: float
    learning_rate: float
    tokens: int
    tokens_per_second: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    skipped: int = 0


class EvaluationBatch(Protocol):
    """What a metric sees of one batch: the supervised positions, flat.

    Attributes:
        predictions: Most likely token, int64 (tokens,).
        labels: The token that stands there, int64 (tokens,).
        losses: Negative log-likelihood in nats, float32 (tokens,).
    """

    predictions: Any
    labels: Any
    losses: Any


@runtime_checkable
class Metric(Protocol):
    """A figure computed while evaluation runs. Logits are never collected."""

    def update(self, batch: EvaluationBatch) -> None:
        """Take in one batch."""
        ...

    def compute(self) -> Mapping[str, float]:
        """Return name -> value for everything since the metric was built."""
        ...


@runtime_checkable
class Collator(Protocol):
    """Turns a list of examples into one batch of tensors."""

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return at least `input_ids`, `attention_mask` and `labels`, each int64 (batch, tokens).

        An example that is a pack has `lengths`, the tokens of each of its sequences; then there are `position_ids`,
        int64 (batch, tokens), too, which begin at 0 with each sequence.
        """
        ...


class Prepared(msgspec.Struct):
    """Model, optimizer and schedule as a strategy trains them (wrapped, sharded, or as they were)."""

    model: Any
    optimizer: Any
    scheduler: Any


@runtime_checkable
class Strategy(Protocol):
    """How one optimizer step is done on the hardware at hand. Owns placement, precision, sharding and their state."""

    def setup(self) -> None:
        """Choose the device and seed it; no process group yet, so that data preparation cannot time out."""
        ...

    def prepare(self, model: Any, build: Callable[[Any], tuple[Any, Any]]) -> Prepared:
        """Place and wrap `model`, and call `build(model) -> (optimizer, scheduler)` when its parameters are final."""
        ...

    def place(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch with its tensors on the device."""
        ...

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: autocast, or nothing."""
        ...

    def compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(*arguments)`, which computes with the model's parameters, as this strategy computes."""
        ...

    def backward_context(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of one micro-batch's backward: gradients are exchanged only for the `last` one."""
        ...

    def backward(self, loss: Any) -> None:
        """Add the gradient of `loss`, a scalar that is already divided by the step's supervised tokens."""
        ...

    def step(self, max_norm: float | None, loss: Any = None) -> Any:
        """Clip to `max_norm` (None: do not), step optimizer and schedule, clear gradients.

        Where the gradient or `loss` is not finite, weights and optimizer stay as they are, and only
        the schedule moves. No process should wait for its device to find that out.

        Args:
            max_norm: Norm to which the whole gradient is clipped.
            loss: The step's loss over all processes, a scalar tensor on the device; None: it is not looked at.

        Returns:
            The norm of the whole gradient before clipping, as a scalar tensor on the device; not finite, on every
            process, where no step was taken.
        """
        ...

    def reduce_sum(self, values: Any, what: str = "a sum") -> Any:
        """Return the sum of a tensor over all processes; `what` it is, for an error where one of them does not come."""
        ...

    def full_state(self, model: Any, *, trained: bool) -> Mapping[str, Any] | None:
        """Return name -> whole tensor on rank 0, at least of what is `trained`; None elsewhere. All must call it."""
        ...

    def save(self, directory: Path) -> None:
        """Write everything needed to go on except what `oumi_save_model` writes: optimizer, schedule, loss scale."""
        ...

    def load(self, directory: Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointError: A file is missing, damaged, or does not fit the model.
        """
        ...

    def close(self) -> None:
        """Leave the process group, if there is one."""
        ...


class Session(msgspec.Struct, kw_only=True):
    """Everything a trainer's loop works with.

    Attributes:
        run: The run.
        kernel: The facade: broadcasts events, saves the model.
        strategy: How a step is done.
        prepared: Model, optimizer, schedule.
        tokenizer: The tokenizer, saved beside every checkpoint.
        plan: How long the run is.
        examples: Split name -> prepared examples.
        collators: Split name -> collator.
        build_metrics: Makes fresh metrics for one evaluation.
        stop: Whether the process was asked to stop: then a loop leaves a complete checkpoint and raises StopRequested.
    """

    run: Run
    kernel: Any
    strategy: Strategy
    prepared: Prepared
    tokenizer: Any
    plan: Plan
    examples: Mapping[str, Sequence[Any]]
    collators: Mapping[str, Collator]
    build_metrics: Callable[[], Sequence[Metric]]
    stop: Stop = msgspec.field(default_factory=Stop)


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished training did: last figures by name, and the steps done."""

    steps: int
    figures: Mapping[str, float]


@runtime_checkable
class Trainer(Protocol):
    """What a training method adds to the loop: which examples it needs, and how it trains and evaluates on them."""

    def prepare(self, split: str, rows: Sequence[Row], target: TrainTarget) -> Sequence[Any]:
        """Turn rows into examples, once, before the model is loaded.

        The examples are any sequence: a list, or, for more rows than memory holds, one that keeps them on disk. It may
        be sent to the processes of a data loader, and its items are what the split's collator takes. Rows are read
        lazily, so that a row that cannot be read is found here; read each once, and in order.

        Raises:
            DataError: A row cannot be used, or nothing is left to train on.
        """
        ...

    def plan(self, examples: Mapping[str, Sequence[Any]]) -> Plan:
        """Return the number of steps that `train` will do."""
        ...

    def parameter_groups(self, model: Any) -> Sequence[dict[str, Any]]:
        """Return groups of what trains: `params` as (name, tensor), `weight_decay`, `kind` (weights, head or rest)."""
        ...

    def train(self, session: Session) -> Summary:
        """Train to the end of the plan, evaluating and saving on the way, resuming where the config says so."""
        ...
