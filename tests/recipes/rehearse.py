"""Dry runs of recipes as they stand, without a hub: `python -m tests.recipes.rehearse RECIPE...` prints a line each.

A cache of the hub is built in which each model has its `config.json` and a tokenizer, but no weights; the rows are our
own, each longer than a recipe's longest example, so that an estimate is that of the largest batches.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TOKENIZER = ROOT / "configs/quickstart/model"
ROWS, WORDS = 32, 12_000
REVISION = "0" * 40
PROCESSES = re.compile(r"^# Run: .* --nproc(?:-per-node)? (\d+) ", re.MULTILINE)
"""How many processes a recipe is started with."""
UNSAVED = ("--training.save_steps=0", "--training.save_final_model=false")
"""Where training is on a GPU, the copy from which a checkpoint is written is in the host's memory."""


def main(recipes: list[str]) -> None:
    """Print what the dry run of each recipe says, as a line of JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OUMI_CACHE_DIR": str(folder / "cache")}
        os.chdir(folder)
        _write_rows(folder / "rows.jsonl")
        for recipe in recipes:
            sys.stdout.write(json.dumps({"recipe": recipe} | _rehearse(ROOT / recipe, folder)) + "\n")
            sys.stdout.flush()


def _rehearse(recipe: Path, folder: Path) -> dict[str, Any]:
    from oumi_kernel.contracts import World
    from oumi_kernel.dry_run import dry_run
    from oumi_kernel.errors import OumiError
    from oumi_kernel.loading import load_config
    from oumi_kernel.loading.overrides import split_overrides
    from oumi_kernel.plugins import resolve, scan

    report = _Kept()
    try:
        config = load_config(recipe).config
        publish(config.model.model_name, folder / "hub/hub")
        rows = [{"dataset_name": "text_sft", "dataset_path": str(folder / "rows.jsonl")}]
        flags = [f"--data.{split}.datasets={json.dumps(rows)}" for split in _splits(config)]
        overrides, _ = split_overrides([*flags, *UNSAVED, f"--training.output_dir={folder / 'output'}"])
        loaded = load_config(recipe, overrides)
        started = PROCESSES.search(recipe.read_text())
        world = World(size=int(started[1]) if started else 1)
        dry_run(loaded, resolve(loaded, scan(), world_size=world.size), world, 0, report)
    except OumiError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    return {"peak": report.peak, "trained": report.trained, "parameters": report.parameters}


def _splits(config: Any) -> list[str]:
    return [name for name in ("train", "validation") if getattr(config.data, name).datasets]


def publish(name: str, hub: Path) -> None:
    """Put a model without weights where the library of the hub keeps what it has fetched."""
    from tests.recipes.architectures import ARCHITECTURES, config_of

    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    if snapshot.exists() or name not in ARCHITECTURES:
        return
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(REVISION)
    config_of(name).save_pretrained(snapshot)
    for file in TOKENIZER.glob("*"):
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            shutil.copy(file, snapshot)


def _write_rows(path: Path) -> None:
    text = "word " * WORDS
    rows = ([{"role": "user", "content": str(i)}, {"role": "assistant", "content": text}] for i in range(ROWS))
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))


class _Kept:
    """Keeps the estimate (see `oumi_kernel.dry_run.Report`)."""

    peak = trained = parameters = 0

    def examples(self, split: str, previews: Any) -> None:
        """There are none."""

    def data(self, split: str, stage: Any, lengths: Any) -> None:
        """Not looked at."""

    def steps(self, session: Any, rates: Any) -> None:
        """Not looked at."""

    def estimate(self, estimate: Any) -> None:
        """Keep what counts."""
        self.peak, self.trained, self.parameters = estimate.peak_bytes, estimate.trained, estimate.parameters

    def missing(self, what: str) -> None:
        """Fail: everything is to be checked."""
        raise AssertionError(what)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
