"""Data in several processes: prepared before they meet, once; dealt out without loss; gone on with where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART, Install

pytestmark = pytest.mark.slow

ROWS, HELD_OUT, STEP = 61, 5, 8
TIMEOUT, SLOW = 4.0, 9.0
"""Seconds that an exchange may take, and that the rows of one process take."""
WATCH = f"""
import hashlib, os, signal, time
from collections.abc import Sequence
from pathlib import Path

from oumi_kernel import Component, hookimpl

def note(name, text):
    with Path(name).open("a") as file:
        file.write(str(text) + "\\n")

class Slow(Sequence):
    def __init__(self, rows):
        self.rows = rows
    def __len__(self):
        return len(self.rows)
    def __getitem__(self, index):
        if index == 20:
            time.sleep({SLOW})
        return self.rows[index]

class Collating:
    def __init__(self, collator, is_held_out):
        self.collator, self.is_held_out, self.process = collator, is_held_out, os.getpid()
    def __call__(self, examples):
        for example in () if self.is_held_out else examples:
            if len(example["input_ids"]) > 1:
                note("read", hashlib.sha256(example["input_ids"].tobytes()).hexdigest())
        if self.is_held_out and os.environ.get("RANK") == "1":
            os.kill(self.process, signal.SIGTERM)
        return self.collator(examples)

class Watch(Component):
    '''Rows that come late in the first process, what is tokenised and read, and a stop in the second's evaluation.'''
    @hookimpl(wrapper=True)
    def oumi_load_dataset(self):
        rows = yield
        return Slow(rows) if os.environ.get("RANK") == "0" and len(rows) > 30 else rows
    @hookimpl(wrapper=True)
    def oumi_build_tokenizer(self):
        tokenizer = yield
        kind = type(tokenizer)
        def call(self, texts, *arguments, **options):
            if isinstance(texts, list):
                note("tokenised", len(texts))
            return kind.__call__(self, texts, *arguments, **options)
        tokenizer.__class__ = type(kind.__name__, (kind,), {{"__call__": call}})
        return tokenizer
    @hookimpl(wrapper=True)
    def oumi_build_collator(self, split):
        collator = yield
        return Collating(collator, "held_out" in split.datasets[0].dataset_path)
"""
FLAGS = (
    "--training.output_dir=out",
    f"--training.nccl_default_timeout_minutes={TIMEOUT / 60}",
    "--training.dataloader_num_workers=1",
    "--training.per_device_eval_batch_size=2",
    "--training.max_steps=8",
    "--training.eval_strategy=steps",
    "--training.eval_steps=7",
    "--training.save_steps=100",
    "--training.logging_steps=1",
    "--training.enable_tensorboard=false",
)


def write_configuration(folder: Path) -> None:
    """Write a run over two files, shuffled by a seed that nobody gave."""
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    for name, part in (("one", lines[:40]), ("two", lines[40:ROWS]), ("held_out", lines[ROWS : ROWS + HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("\n".join(part))

    def split(*names: str) -> dict[str, object]:
        datasets = [{"dataset_name": "text_sft", "dataset_path": f"./{n}.jsonl", "shuffle": True} for n in names]
        return {"datasets": datasets, "stream": True, "collator_name": "text_completions_only_with_padding"}

    data = {"train": split("one", "two"), "validation": split("held_out")}
    (folder / "train.yaml").write_text(json.dumps({"model": {"model_name": str(QUICKSTART / "model")}, "data": data}))


def lines_of(file: str) -> list[str]:
    return Path(file).read_text().split()


def test_slow_rows_outlast_the_timeout_and_a_run_that_was_stopped_reads_only_what_is_left(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files, two processes, a worker each: a late process, a stop in one's evaluation, then one process alone."""
    site = install("oumi-watch", "1.0", {"oumi.plugins": {"watch": "watch:Watch"}}, watch=WATCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    write_configuration(tmp_path)

    command = [sys.executable, "-m", "oumi_kernel", "run", "train.yaml", "--nproc", "2", *FLAGS]
    command += [f"--training.per_device_train_batch_size={STEP // 2}"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "out/checkpoint-7 is complete" in done.stderr
    waited = [f"process {rank}" for rank in range(2) if f"{SLOW:.0f}" in _seconds(rank)]
    assert waited == ["process 0"]  # and longer than an exchange may take
    assert sum(map(int, lines_of("tokenised"))) == ROWS + HELD_OUT
    read = lines_of("read")
    assert len(read) == len(set(read)) >= 7 * STEP  # and what the workers read ahead

    Path("read").unlink()
    flags = (*FLAGS, f"--training.per_device_train_batch_size={STEP}", "--training.try_resume_from_last_checkpoint")
    overrides, _ = split_overrides(flags)
    loaded, catalogue = open_sound_config("train.yaml", overrides, ())
    run_training(loaded, resolve(loaded, catalogue))
    assert sum(map(int, lines_of("tokenised"))) == ROWS + HELD_OUT
    left = lines_of("read")
    assert len(left) == ROWS - 7 * STEP
    assert len({*read, *left}) == ROWS
    figures = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert [entry["tokens"] for entry in figures if "tokens" in entry][-1] == _tokens_of_all()


def _seconds(rank: int) -> str:
    """Return how long the preparation of the training rows took a process, in whole seconds."""
    (line,) = [line for line in Path(f"out/logs/rank_{rank}.log").read_text().splitlines() if "data.train: 61" in line]
    return line.split(" rows in ")[1].split(".")[0]


def _tokens_of_all() -> int:
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    rows = [json.loads(line) for name in ("one", "two") for line in Path(f"{name}.jsonl").read_text().splitlines()]
    return sum(len(tokenizer.apply_chat_template(row["messages"])["input_ids"]) for row in rows)
