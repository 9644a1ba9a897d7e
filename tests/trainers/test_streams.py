"""Rows of many files over processes and workers: each is read once an epoch, and none again after a resume."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel.contracts import Prepared, Run, Session, World
from oumi_kernel.loading import load_text, to_yaml
from oumi_kernel.plugins import Kernel, resolve, scan
from oumi_kernel.plugins.slots import filled_splits
from oumi_kernel.run import prepare
from oumi_plugins.trainers._batches import Batches
from tests.conftest import QUICKSTART

ROWS, STEP = 67, 6
"""Rows of all files, and examples of a step of all processes: no whole number of steps."""
DONE = 60
"""Examples that are done when a run goes on: 90 %."""


class Noted(Sequence[Any]):
    """Examples of which each one that is read is written down, by whatever process reads it."""

    def __init__(self, examples: Any, file: Path) -> None:
        self._examples, self._file = examples, os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.lengths, self.content = examples.lengths, examples.content

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        os.write(self._file, f"{index}\n".encode())
        return self._examples[index]


def session(folder: Path, files: int, world: World, workers: int = 0, rows: int = ROWS) -> Session:
    """Return the session of a process of a run over so many files, of which the first is the longest."""
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()[:rows]
    for number in range(files):
        first = rows - 3 * (files - number)
        taken = lines[: first + 3] if number == 0 else lines[first : first + 3]
        (folder / f"{number}.jsonl").write_text("\n".join(taken))
    datasets = [{"dataset_name": "text_sft", "dataset_path": f"{folder}/{number}.jsonl"} for number in range(files)]
    split = {"datasets": datasets, "stream": True, "collator_name": "text_completions_only_with_padding"}
    training = {"per_device_train_batch_size": STEP // world.size, "dataloader_num_workers": workers}
    config = {"model": {"model_name": str(QUICKSTART / "model")}, "data": {"train": split}, "training": training}
    loaded = load_text(to_yaml(config), "c")
    kernel = Kernel(resolve(loaded, scan(), world_size=world.size))
    run = Run(config=loaded.config, folder=folder, world=world)
    stage = prepare(kernel, kernel.build_strategy(run), run)
    (folder / "reads").unlink(missing_ok=True)
    return Session(
        run=run,
        kernel=kernel,
        strategy=stage.strategy,
        prepared=Prepared(model=None, optimizer=None, scheduler=None),
        tokenizer=stage.tokenizer,
        plan=stage.trainer.plan(stage.data.examples),
        examples={"train": Noted(stage.data.examples["train"], folder / f"reads_{world.rank}")},
        collators={
            name: kernel.build_collator(name, split, stage.tokenizer, run) for name, split in filled_splits(run.config)
        },
        build_metrics=list,
    )


def steps(batches: Batches, epoch: int, example: int = 0) -> Iterator[list[tuple[int, ...]]]:
    """Yield the examples of each step of a process, as their tokens."""
    for window in batches.windows(epoch, example):
        rows: list[tuple[int, ...]] = []
        for batch, _ in window:
            rows += [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(*batch["rows"], strict=True)]
        yield [row for row in rows if len(row) > 1]  # one token: a process without an example


def loader(of: Session) -> Batches:
    return Batches(of, lambda batch: ({"rows": (batch["input_ids"], batch["attention_mask"])}, 0))


def reads(folder: Path) -> list[int]:
    found = [int(line) for file in folder.glob("reads_*") for line in file.read_text().split()]
    for file in folder.glob("reads_*"):
        file.write_text("")
    return found


@pytest.mark.parametrize("files", [1, 5])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_row_is_read_once_an_epoch_and_every_process_has_as_many_steps(
    tmp_path: Path, processes: int, workers: int, files: int
) -> None:
    alone = session(tmp_path, files, World())
    expected = [sorted(step) for step in steps(loader(alone), 0)]
    everything = sorted(tuple(example["input_ids"].tolist()) for example in alone.examples["train"])
    sessions = [session(tmp_path, files, World(rank=rank, size=processes), workers) for rank in range(processes)]
    loaders = [loader(one) for one in sessions]
    reads(tmp_path)
    orders: list[Any] = []
    for epoch in range(2):
        parts = [list(steps(one, epoch)) for one in loaders]
        assert {len(part) for part in parts} == {sessions[0].plan.steps_per_epoch} == {-(-ROWS // STEP)}
        orders.append([sorted(row for share in shares for row in share) for shares in zip(*parts, strict=True)])
        assert sorted(row for step in orders[-1] for row in step) == everything
        assert sorted(reads(tmp_path)) == list(range(ROWS))
    assert orders[0] == expected  # whatever the number of processes
    assert orders[1] != orders[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_after_nine_tenths_of_an_epoch_only_what_is_left_is_read_and_nothing_is_prepared(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = [list(steps(loader(session(tmp_path, 5, World(rank=rank, size=2))), 0)) for rank in range(2)]
    reads(tmp_path)
    caplog.set_level(logging.INFO, "oumi_plugins")
    sessions = [session(tmp_path, 5, World(rank=rank, size=2), workers) for rank in range(2)]
    assert [record.args[3:5] for record in caplog.records if "prepared, " in record.message] == [(0, ROWS)] * 2  # pyright: ignore
    loaders = [loader(one) for one in sessions]
    reads(tmp_path)  # the first example is looked at when a loader is made
    assert [list(steps(one, 0, DONE)) for one in loaders] == [part[DONE // STEP :] for part in whole]
    assert len(reads(tmp_path)) == ROWS - DONE
