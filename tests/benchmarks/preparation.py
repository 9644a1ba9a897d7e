"""How preparation grows with rows: time, processor time, memory, and what a second run costs. A script, not a test.

    python tests/benchmarks/preparation.py [--rows 1000 10000 100000] [--pack]

For each size it writes synthetic chats into a .jsonl file of a temporary folder, and prepares them with the model and
the chat template of the quickstart, as a run does, in a process of its own with a cache of its own; then once more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "configs/quickstart/data/train.jsonl"
COLUMNS = ("rows", "rows/s", "tokens/s", "CPU s", "peak RSS MB", "second run s", "its CPU s", "its peak MB", "cache MB")


def main() -> None:
    """Measure every size in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--pack", action="store_true", help="pack examples")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(prepare(options.one, pack=options.pack)))
        return
    sys.stdout.write("| " + " | ".join(COLUMNS) + " |\n|" + "---:|" * len(COLUMNS) + "\n")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            write_chats(Path(folder) / "chats.jsonl", rows)
            first, second = (in_a_process(Path(folder), pack=options.pack) for _ in range(2))
            size = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*") if path.is_file())
        seconds = first["seconds"]
        cells = [f"{rows:,}", f"{rows / seconds:,.0f}", f"{first['tokens'] / seconds:,.0f}", f"{first['cpu']:.1f}"]
        cells += [
            f"{first['peak_mb']:.0f}",
            f"{second['seconds']:.2f}",
            f"{second['cpu']:.2f}",
            f"{second['peak_mb']:.0f}",
            f"{size / 1e6:.0f}",
        ]
        sys.stdout.write("| " + " | ".join(cells) + " |\n")
        sys.stdout.flush()


def write_chats(path: Path, rows: int) -> None:
    """Write chats whose words are those of the quickstart's, of one to three turns, 20 to 250 tokens mostly."""
    words = [word for line in DATA.read_text().splitlines() for turn in json.loads(line)["messages"]
             for word in turn["content"].split()]  # fmt: skip
    generator = random.Random(1)
    with path.open("w") as file:
        for _ in range(rows):
            messages = []
            for _ in range(generator.randint(1, 3)):
                for role, most in (("user", 20), ("assistant", 60)):
                    start, count = generator.randrange(len(words) - most), generator.randint(3, most)
                    messages.append({"role": role, "content": " ".join(words[start : start + count])})
            file.write(json.dumps({"messages": messages}) + "\n")


def in_a_process(folder: Path, *, pack: bool) -> dict[str, float]:
    """Return what one preparation in a process of its own took, without the start of Python and its imports."""
    command = [sys.executable, __file__, "--one", str(folder), *(["--pack"] if pack else [])]
    environment = os.environ | {"OUMI_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def prepare(folder: Path, *, pack: bool) -> dict[str, float]:
    """Prepare the chats of a folder as a run does."""
    from transformers import AutoTokenizer

    from oumi_kernel.config import DatasetParams, TrainTarget
    from oumi_kernel.contracts import Run
    from oumi_kernel.loading import load_text, to_yaml
    from oumi_kernel.mixture import mix
    from oumi_plugins.datasets.text_sft import TextSft, TextSftParams
    from oumi_plugins.trainers._sft import SftTrainer
    from oumi_plugins.trainers.sft import SftParams

    dataset = {"dataset_name": "text_sft", "dataset_path": str(folder / "chats.jsonl")}
    train = {"datasets": [dataset], "pack": pack, "stream": pack}
    model = {"model_name": str(ROOT / "configs/quickstart/model"), "model_max_length": 512}
    config = load_text(to_yaml({"model": model, "data": {"train": train}}), "benchmark").config
    run = Run(config=config, folder=folder)
    trainer = SftTrainer(SftParams(), AutoTokenizer.from_pretrained(model["model_name"]), run)
    started, processor = time.perf_counter(), time.process_time()
    entry: DatasetParams = config.data.train.datasets[0]
    rows = TextSft().oumi_load_dataset(params=TextSftParams(), dataset=entry, run=run)
    mixed = mix([rows], config.data.train, split_name="train")
    examples = trainer.prepare("train", mixed, TrainTarget.ALL_ASSISTANT_TURNS)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        "tokens": int(examples.lengths.sum(dtype="int64")),
    }


if __name__ == "__main__":
    main()
