"""Batches on the host, laid out as the model reads them: of an epoch of training, and of a split that is evaluated.

Nothing reads ahead here: a GPU works through a step while the host makes the next batch, and worker processes
(`dataloader_num_workers`) make theirs ahead.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from oumi_kernel.contracts import Session
from oumi_kernel.manifest import fingerprint
from oumi_plugins.trainers._examples import token_counts
from oumi_plugins.trainers._order import RowBatches, batches_of

Batch = tuple[dict[str, Any], int]
"""A batch as the model reads it, and its supervised tokens."""

Supervise = Callable[[Mapping[str, torch.Tensor]], Batch]
IGNORE = -100
"""The label of positions without a loss where the configuration does not say."""
_STOPPING = (signal.SIGTERM, signal.SIGINT)


class Collate:
    """A collator, and the layout of what it returns: both done where examples are read."""

    def __init__(
        self, collator: Callable[[Sequence[Any]], Mapping[str, torch.Tensor]], supervise: Supervise, nothing: Any
    ) -> None:
        self._collator, self._supervise, self._nothing = collator, supervise, nothing

    def __call__(self, examples: Sequence[Any]) -> Batch:
        """Return the batch of some examples; of none, one that has no loss: all processes compute at the same time."""
        batch, supervised = self._supervise(self._collator(examples or [self._nothing]))
        return (batch, supervised) if examples else (batch | {"tokens": 0}, supervised)


class Batches:
    """The loaders of a session; each is made once, so that workers can live on between epochs."""

    def __init__(self, session: Session, supervise: Supervise) -> None:
        self._session, self._training = session, session.run.config.training
        self._supervise = supervise
        # A loader draws its workers' seed from a generator; one of its own leaves the global state alone.
        self._generator = torch.Generator()
        self._loaders: dict[str, DataLoader[Any]] = {}
        training, counts = self._training, token_counts(session.examples["train"])
        self._order = batches_of(counts, training, session.run.world)
        ignored = IGNORE if training.label_ignore_index is None else training.label_ignore_index
        first = session.examples["train"][0]["input_ids"][:1]
        self._nothing = {"input_ids": first, "labels": [ignored]}

    @property
    def order_follows_from(self) -> dict[str, int | str]:
        """What must be the same for an epoch to go on with the samples that are left of it."""
        training = self._training
        return {
            "the number of training examples": len(self._session.examples["train"]),
            "the content of the training examples": (fingerprint(self._session.examples["train"]) or "")[:12],
            "training.data_seed": training.data_seed,
        }

    def windows(self, epoch: int, example: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each optimizer step that is left of an epoch; the last window may be smaller.

        Args:
            epoch: The epoch.
            example: How many of its examples are done, by all processes.
        """
        self._order.go_to(epoch, example)
        self._generator.manual_seed((self._training.seed + epoch) % 2**63)
        batches = _iterate(self._loader("train", batch_sampler=self._order))
        while window := list(itertools.islice(batches, self._training.gradient_accumulation_steps)):
            yield window

    def of(self, split: str) -> Iterator[Batch]:
        """Yield this process's batches of a split, in the order of its rows; every process has as many."""
        size, rows = self._training.per_device_eval_batch_size, len(self._session.examples[split])
        turns = RowBatches(rows, size, self._session.run.world)
        yield from _iterate(self._loader(split, batch_sampler=turns))

    def _loader(self, split: str, **options: Any) -> DataLoader[Any]:
        if split not in self._loaders:
            training, examples = self._training, self._session.examples[split]
            workers = training.dataloader_num_workers
            workers = max(1, min(8, (os.cpu_count() or 1) // 4)) if workers == "auto" else workers
            if workers:
                options |= {"num_workers": workers, "prefetch_factor": training.dataloader_prefetch_factor}
                options["persistent_workers"] = training.dataloader_persistent_workers
                options["worker_init_fn"] = _leave_stopping_to_the_run
            collate = Collate(self._session.collators[split], self._supervise, self._nothing)
            options |= {"collate_fn": collate, "generator": self._generator}
            options["pin_memory"] = torch.cuda.is_available()
            self._loaders[split] = DataLoader(examples, **options)  # pyright: ignore[reportArgumentType]
        return self._loaders[split]


def _iterate(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Begin an epoch, its workers deaf to signals from their first moment on: they inherit what is blocked here."""
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_stopping_to_the_run(worker: int) -> None:
    """Make a worker end when the run says so, not when a whole process group is told to: its batches are needed yet.

    Torch's own handler would end the worker, and the run with it, before the checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
