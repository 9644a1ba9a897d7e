"""What runs need that are larger than this machine: `python -m tests.benchmarks.plan --help`. Nothing is trained.

Each row is the estimate of a dry run (architecture, adapter, optimizer and micro-batch without storage), divided as a
strategy divides it, beside the time that computing and sending would take at the stated speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from oumi_kernel.contracts import Run, World
from oumi_kernel.rehearsal import Division, Estimate, Exchange
from tests.recipes.rehearse import publish

TOKENS = 4096
"""Of a micro-batch of one process, in one row."""
PER_NODE = 8
GPU_BYTES, NEEDS_FREE = 80e9, 0.9
"""Memory of a GPU, and the share of it that may be planned with: the rest is for libraries and the allocator."""
PEAK, UTILISATION = 989e12, 0.4
"""bfloat16 operations a second of an H100, and the share of them that a training step reaches."""
WITHIN, BETWEEN = 450e9, 50e9
"""Bytes a second that a GPU sends to others of its machine (NVLink), and to other machines (400 Gbit/s)."""
BUCKET, LIVE = 2 * 500_000_000, 2 * 1_000_000_000
"""Bytes of DeepSpeed's own `reduce_bucket_size` and `stage3_max_live_parameters` in bfloat16."""
GIB = 2**30


class Case(NamedTuple):
    """A model, and GPUs for it."""

    model: str
    processes: int

    @property
    def world(self) -> World:
        return World(size=self.processes, nodes=self.processes // PER_NODE)


CASES = {
    "8b": Case("meta-llama/Llama-3.1-8B-Instruct", 8),
    "70b": Case("meta-llama/Llama-3.1-70B-Instruct", 64),
    "405b": Case("meta-llama/Llama-3.1-405B-Instruct", 512),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"lora_r": 16, "lora_target_modules": PROJECTIONS}
QLORA = LORA | {"q_lora": True, "q_lora_bits": 4, "bnb_4bit_compute_dtype": "bfloat16"}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"model": {"torch_dtype_str": "float32"}, "training": {"mixed_precision_dtype": "bf16"}},
    "LoRA": {"training": {"use_peft": True}, "peft": LORA},
    "QLoRA": {"training": {"use_peft": True}, "peft": QLORA},
}
KINDS: dict[str, tuple[int, Sequence[bool]]] = {
    "full": (7, (False, True)),
    "LoRA": (4, (True,)),
    "QLoRA": (1, (True,)),
}
"""What is trained -> how many of the strategies below are shown, and whether layers are computed again: packed weights
are not divided, and with few gradients ZeRO 1 and 2 are DDP."""
Divide = Callable[[Any, World], Division]


def divisions(count: int) -> dict[str, Divide]:
    """Return how strategies divide a model that computes in bfloat16, so many of them."""
    from oumi_plugins.strategies._division import fully_sharded, replicated, sizes_of, zero

    def whole(model: Any, number_format: str) -> Any:
        return sizes_of(model, (), number_format)[0]

    def staged(stage: int) -> Divide:
        def divide(model: Any, world: World) -> Division:
            found = zero(stage, whole(model, "bfloat16"), world, 1, bucket_bytes=BUCKET, live_bytes=LIVE)
            return msgspec.structs.replace(found, number_format="bfloat16")

        return divide

    def sharded(*, reshards: bool, within: bool = False) -> Divide:
        def divide(model: Any, world: World) -> Division:
            sizes = sizes_of(model, layers(model), "bfloat16", "float32")
            copies = world.nodes if within else 1
            found = fully_sharded(sizes, world, 1, copies=copies, reshards=reshards)
            return msgspec.structs.replace(found, number_format="bfloat16")

        return divide

    found: dict[str, Divide] = {
        "DDP": lambda model, world: replicated(whole(model, ""), world),
        "ZeRO 3": staged(3),
        "FULL_SHARD": sharded(reshards=True),
        "HYBRID_SHARD": sharded(reshards=True, within=True),
        "SHARD_GRAD_OP": sharded(reshards=False),
        "ZeRO 1": staged(1),
        "ZeRO 2": staged(2),
    }
    return dict(list(found.items())[:count])


def layers(model: Any) -> list[Any]:
    """Return the layers of a model of transformers."""
    return [module for module in model.modules() if type(module).__name__ in model._no_split_modules]


class Row(NamedTuple):
    """One line of the table."""

    method: str
    recomputed: bool
    strategy: str
    estimate: Estimate
    tokens: int

    def cells(self) -> list[str]:
        found = {amount.what: amount.bytes or 0 for amount in self.estimate.memory}
        state = found["optimizer state"] + found.get("float32 copies", 0)
        gathered = sum(found.get(what, 0) for what in ("gathered weights", "whole gradients", "buckets"))
        peak, wire = self.estimate.peak_bytes, sum(seconds(exchange) for exchange in self.estimate.traffic)
        sizes = (found["weights"], found["gradients"], state, gathered, found["activations"] + found["logits"], peak)
        return [
            self.method,
            "yes" if self.recomputed else "no",
            self.strategy,
            *(f"{size / GIB:.1f}" for size in sizes),
            "yes" if peak <= NEEDS_FREE * GPU_BYTES else "no",
            f"{sum(exchange.bytes for exchange in self.estimate.traffic) / GIB:.2f}",
            f"{wire:.2f}",
            f"{computing(self):.2f}",
        ]


def seconds(exchange: Exchange) -> float:
    """Return how long an exchange takes: as long as the slowest part of its ring.

    Between machines each GPU has its own way out, which all processes of the ring on one machine share.
    """
    here = exchange.processes // exchange.nodes
    return exchange.bytes / (WITHIN if exchange.nodes == 1 else min(WITHIN, here * BETWEEN))


def computing(row: Row) -> float:
    """Return the seconds that a step computes.

    Each parameter takes 2 operations a token forward, 2 for the gradient of its input, 2 for that of the weight where
    it trains, and 2 forward again where activations are computed again (Kaplan et al., arXiv 2001.08361, section 2.1).
    """
    estimate = row.estimate
    operations = (4 + 2 * row.recomputed) * estimate.parameters + 2 * estimate.trained
    return operations * row.tokens / (PEAK * UTILISATION)


def rows(case: Case, tokens: int, methods: Sequence[str], strategies: str = "") -> Iterator[Row]:
    """Yield the lines of one model; `strategies` is a part of the names of those wanted."""
    for method in methods:
        count, recomputed = KINDS[method]
        wanted = {name: divide for name, divide in divisions(count).items() if strategies in name}
        if case.world.nodes == 1:
            wanted.pop("HYBRID_SHARD", None)  # which is FULL_SHARD there
        for again in recomputed:
            found = estimates(case, tokens, method, again, wanted)
            for strategy in wanted:
                yield Row(method, again, strategy, found[strategy], tokens)


def estimates(case: Case, tokens: int, method: str, again: bool, wanted: dict[str, Divide]) -> dict[str, Estimate]:
    """Return strategy -> what a dry run of it says."""
    from oumi_kernel.loading import load_config
    from oumi_kernel.plugins import Kernel, resolve, scan
    from oumi_kernel.run import assemble, prepare
    from oumi_kernel.seeds import with_seeds
    from oumi_plugins.strategies._single import SingleStrategy

    class Planned(SingleStrategy):
        """A strategy that divides as it is told, of processes that are not there."""

        def __init__(self, run: Run, division: Division) -> None:
            super().__init__(run)
            self._division = division

        def division(self, model: Any) -> Division:
            return self._division

    loaded = with_seeds(load_config(configure(case, tokens, method, again)), case.world)
    kernel = Kernel(resolve(loaded, scan()))
    run = Run(config=loaded.config, folder=loaded.folder, world=case.world)
    stage = prepare(kernel, SingleStrategy(run), run)
    skeleton = kernel.build_skeleton(stage.tokenizer, stage.data.examples, run)
    session = assemble(stage, stage.trainer.miniature(skeleton))
    found: dict[str, Estimate] = {}
    for name, divide in wanted.items():
        session.strategy = Planned(run, divide(skeleton, case.world))
        found[name] = stage.trainer.rehearse(session, skeleton)
    return found


def configure(case: Case, tokens: int, method: str, again: bool) -> Path:
    """Write a run of the model whose every row is as long as a micro-batch; return its file."""
    folder = Path.cwd()
    publish(case.model, folder / "hub/hub")
    answer = {"role": "assistant", "content": "word " * tokens}
    row = json.dumps({"messages": [{"role": "user", "content": "?"}, answer]})
    (folder / "rows.jsonl").write_text("\n".join([row] * case.processes))
    sections = METHODS[method]
    training = {
        "per_device_train_batch_size": 1,
        "enable_gradient_checkpointing": again,
        "output_dir": str(folder / "output"),
        "save_steps": 0,
        "save_final_model": False,
        "max_steps": 2,
    }
    written = {
        "model": {"model_name": case.model, "model_max_length": tokens, "torch_dtype_str": "bfloat16"}
        | sections.get("model", {}),
        "data": {"train": {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(folder / "rows.jsonl")}]}},
        "training": training | sections.get("training", {}),
        "peft": sections.get("peft", {}),
    }
    (folder / "train.json").write_text(json.dumps(written))
    return folder / "train.json"


HEAD = (
    "trains", "recomputed", "strategy", "weights", "gradients", "optimizer", "gathered", "activations", "peak", "fits",
    "sent", "sending, s", "computing, s",
)  # fmt: skip


def planned(cases: Sequence[Case], tokens: int, methods: Sequence[str], strategies: str = "") -> list[list[str]]:
    """Return the lines of the table of each case in Markdown, worked out by a process and in a folder of their own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn"), initializer=enter, initargs=(folder,)) as process,
    ):
        found = process.submit(worked_out, cases, tokens, methods, strategies).result()
    head = [list(HEAD), ["---"] * len(HEAD)]
    return [[f"| {' | '.join(cells)} |\n" for cells in head + lines] for lines in found]


def enter(folder: str) -> None:
    """Work in a folder, before the library of the hub looks where its own is."""
    os.environ |= {"HF_HOME": f"{folder}/hub", "HF_HUB_OFFLINE": "1", "OUMI_CACHE_DIR": f"{folder}/cache"}
    os.chdir(folder)


def worked_out(cases: Sequence[Case], tokens: int, methods: Sequence[str], strategies: str) -> list[list[list[str]]]:
    """Return the cells of each line of each case."""
    return [[row.cells() for row in rows(case, tokens, methods, strategies)] for case in cases]


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="|".join(CASES), help="all if none is named")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of a micro-batch: %(default)s")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    cases = [CASES[name] for name in given.cases or CASES]
    for case, lines in zip(cases, planned(cases, given.tokens, given.methods), strict=True):
        sys.stdout.write(f"### {case.model} on {case.processes} GPUs\n\n{''.join(lines)}\n")


if __name__ == "__main__":
    main()
