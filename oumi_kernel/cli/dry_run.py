"""What a dry run found, on the terminal: in colour where there is any, and just as readable in a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import category

import msgspec
from rich.console import Console
from rich.text import Text

from oumi_kernel.contracts import Session
from oumi_kernel.rehearsal import Accounted, Amount, Estimate, Lengths, PreviewedExample, token_view
from oumi_kernel.run import Stage

SUPERVISED, OTHER, TITLE, WARNING = "bold green", "dim", "bold", "bold red"
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class Printed:
    """Prints each finding when it comes (see `oumi_kernel.dry_run.Report`)."""

    def __init__(self, console: Console | None = None) -> None:
        """Take where to print; the terminal unless given."""
        self._console = console or Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)

    def examples(self, split: str, previews: Sequence[PreviewedExample]) -> None:
        """Print each example as its rows, its text and its tokens."""
        for preview in previews:
            self._title(f"data.{split}, example {preview.index}")
            for number, row in preview.raw.items():
                self._block(f"raw (row {number})", _json(row))
            self._block("rendered", preview.rendered)
            cells = token_view(preview.tokens)
            supervised = sum(is_supervised for _, is_supervised in cells)
            heading = f"tokens (id:text, the loss is on [those in brackets]: {supervised} of {len(cells)})"
            styled = [Text(text, style=SUPERVISED if bold else OTHER) for text, bold in cells]
            self._block(heading, Text(" ").join(styled))

    def data(self, split: str, stage: Stage, lengths: Lengths | None) -> None:
        """Print what became of the rows of a split."""
        examples = stage.data.examples[split]
        self._title(f"data.{split}")
        if isinstance(examples, Accounted):
            report = examples.report
            dropped = sum(report.dropped.values())
            self._line("rows", f"{report.rows:,} = {report.used:,} used + {dropped:,} dropped; {report.cut:,} cut")
            for reason, count in report.dropped.items():
                self._line("  dropped", f"{count:,}: {reason}")
        else:
            self._line("rows", f"{stage.data.rows[split]:,}")
        self._line("examples", f"{len(examples):,}")
        if lengths is not None:
            spread = f"min {lengths.shortest:,}, median {lengths.median:,}, p95 {lengths.p95:,}"
            self._line("lengths", f"{spread}, max {lengths.longest:,} tokens")
            share = lengths.supervised / lengths.tokens
            self._line("supervised", f"{lengths.supervised:,} of {lengths.tokens:,} tokens, {share:.0%}")
        if lengths is not None and split == "train":
            self._line("padding", f"{lengths.padding:.0%} of padded batches would be padding")

    def steps(self, session: Session, rates: Mapping[int, float]) -> None:
        """Print how long the run is, and its learning rates."""
        plan, training = session.plan, session.run.config.training
        self._title("steps")
        parts = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps} accumulated"
        processes = session.run.world.size
        self._line("batch", f"{plan.effective_batch_size:,} examples = {parts} x {processes} processes")
        if plan.balance:
            self._line("balance", f"tokens of the busiest process of a step / mean: {plan.balance}")
        self._line("per epoch", f"{plan.steps_per_epoch:,} steps")
        self._line("total", f"{plan.total_steps:,} steps")
        for step, rate in rates.items():
            self._line("rate", f"{rate:.3e} at step {step:,}")

    def estimate(self, estimate: Estimate) -> None:
        """Print what the run needs, against what is free."""
        several = estimate.processes
        self._title(f"memory of {_each(several)} on {estimate.device} (an estimate)")
        self._line("parameters", f"{estimate.trained:,} of {estimate.parameters:,} train")
        for amount in estimate.memory:
            self._amount(amount, several)
        beside = "beside Python, the libraries, and what the allocator keeps"
        self._line("at the peak", f"{_of_all(estimate.peak_bytes, several)}, {beside}")
        self._free("memory", estimate.peak_bytes, estimate.free_bytes)
        if estimate.host:
            self._title(f"memory of {_each(several)} on the host (an estimate)")
        for amount in estimate.host:
            self._amount(amount, several)
        self._traffic(estimate)
        self._title("disk (an estimate)")
        for amount in estimate.disk:
            self._amount(amount)
        needed = sum(amount.bytes or 0 for amount in estimate.disk)
        self._free("disk", needed, estimate.free_disk_bytes)
        for note in estimate.notes:
            self._line("note", note)

    def _traffic(self, estimate: Estimate) -> None:
        """Print what a process sends in a step, and with whom."""
        if not estimate.traffic:
            return
        self._title("sent by each process in a step (an estimate)")
        for exchange in estimate.traffic:
            among = f"{exchange.how}, among {exchange.processes:,} processes"
            among += f" on {exchange.nodes:,} machines" if exchange.nodes > 1 else ""
            self._line(exchange.what, f"{_size(exchange.bytes):<12} {among}")
        self._line("in all", _of_all(sum(exchange.bytes for exchange in estimate.traffic), estimate.processes))

    def missing(self, what: str) -> None:
        """Print what could not be shown or checked."""
        self._console.print(Text(f"not checked: {what}", style=WARNING))

    def _free(self, what: str, needed: int, free: int | None) -> None:
        if free is None:
            self._line("free", "not known")
        else:
            self._line("free", _size(free))
            if needed > free:
                text = f"WARNING: {_size(needed)} of {what} will not fit into the {_size(free)} that are free."
                self._console.print(Text(text, style=WARNING))

    def _amount(self, amount: Amount, processes: int = 1) -> None:
        size = "?" if amount.bytes is None else _of_all(amount.bytes, processes)
        self._line(amount.what, f"{size:<{12 if processes == 1 else 30}} {amount.how}")

    def _title(self, text: str) -> None:
        self._console.print(Text(f"\n{text}", style=TITLE))

    def _line(self, name: str, value: str) -> None:
        self._console.print(f"  {name:<16} {value}")

    def _block(self, heading: str, content: str | Text) -> None:
        self._console.print(Text(f"  {heading}", style=TITLE))
        self._console.print(_harmless(content) if isinstance(content, str) else content)


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.1f} {UNITS[unit]}" if unit else f"{count:.0f} bytes"


def _each(processes: int) -> str:
    return "one process" if processes == 1 else f"each of {processes:,} processes"


def _of_all(size: int, processes: int) -> str:
    """Return what one process has, and all of them."""
    return _size(size) if processes == 1 else f"{_size(size)} x {processes:,} = {_size(size * processes)}"


def _harmless(text: str) -> str:
    """Return text of the data without what would steer a terminal or hide other text."""
    escaped = (c if c in "\n\t" or category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)
    return "".join(escaped)


def _json(row: Mapping[str, Any]) -> str:
    return msgspec.json.encode(row, enc_hook=repr).decode()
