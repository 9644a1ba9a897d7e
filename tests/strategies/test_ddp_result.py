"""Two and three processes give the result of one: adapters, packs, weights in 4 bits, optimizers, bf16, resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART
from tests.strategies.processes import train_in_turn

pytestmark = pytest.mark.slow

ROWS, STEPS = 61, 8
"""With 12 examples a step, the last step of an epoch has one: not all processes have an example then."""
BATCHES = {1: 6, 2: 3, 3: 2}
"""Processes -> examples of a micro-batch, of which a step has two."""
T, K, P = "--training.", "--training.trainer_kwargs.", "--peft."
LORA = f"{T}use_peft"
EXACT, ADAPTIVE, SHORT = 1e-5, 1e-3, 0.03
"""By how much weights may differ, of the way that training moved them. Sums are cut in another way, which rounds
otherwise. Adam divides a gradient by its size, so that the rounding of small ones counts in full. Muon multiplies in
bfloat16, whose rounding is 1/256, and so does mixed precision."""
ADAMW = f"{T}optimizer=adamw_torch {T}learning_rate=1e-3 {T}save_steps=2 {T}eval_steps=2"
CASES: Mapping[str, tuple[float, str]] = {
    "all of these together": (
        EXACT,
        f"{LORA} {P}peft_kwargs.use_dora=true {T}enable_gradient_checkpointing {T}dataloader_num_workers=1 "
        f"--data.train.pack --data.train.stream --model.model_max_length=128 {K}label_smoothing_factor=0.1",
    ),
    "weights in 4 bits": (EXACT, f"{LORA} {P}q_lora"),
    "a start from data": (EXACT, f"{LORA} {P}lora_init_weights=eva"),
    "ranks that shrink": (
        EXACT,
        f"{LORA} {P}peft_method=adalora {P}peft_kwargs.init_r=6 {P}peft_kwargs.target_r=3 "
        f"{P}peft_kwargs.tinit=1 {P}peft_kwargs.tfinal=2",
    ),
    "padded batches": (EXACT, f"{LORA} {P}peft_method=prompt_tuning {P}peft_kwargs.num_virtual_tokens=4"),
    "the best checkpoint": (ADAPTIVE, f"{ADAMW} {K}save_total_limit=2 {K}load_best_model_at_end=true"),
    "muon": (SHORT, f"{T}optimizer=muon {T}learning_rate=1e-3"),
    "bf16": (SHORT, f"{T}mixed_precision_dtype=bf16"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a configuration, which is the current one."""
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:ROWS]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[ROWS : ROWS + 5]))

    def split(name: str) -> dict[str, object]:
        datasets = [{"dataset_name": "text_sft", "dataset_path": f"./{name}.jsonl"}]
        return {"datasets": datasets, "collator_name": "text_completions_only_with_padding"}

    config = {
        "model": {"model_name": str(QUICKSTART / "model")},
        "data": {"train": split("rows"), "validation": split("held_out")},
        "training": {
            "max_steps": STEPS,
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 2,
            "eval_steps": 4,
            "save_steps": 0,
            "logging_steps": 1,
            "enable_tensorboard": False,
        },
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUMI_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def train(folder: Path, runs: Mapping[str, Sequence[str]], processes: int) -> None:
    size = f"{T}per_device_train_batch_size={BATCHES[processes]}"
    if processes > 1:
        train_in_turn(folder, {name: [*flags, size] for name, flags in runs.items()}, processes=processes)
        return
    for name, flags in runs.items():
        overrides, rest = split_overrides([f"{T}output_dir={name}", *flags, size])
        assert not rest
        loaded, catalogue = open_sound_config("train.yaml", overrides, ())
        run_training(loaded, resolve(loaded, catalogue))


def weights(folder: str) -> dict[str, torch.Tensor]:
    (file,) = Path(folder).glob("*model.safetensors")
    return load_file(file)


def figures(folder: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def assert_same(several: str, one: str, tolerance: float) -> None:
    """Compare weights with the way from where they began (an adapter: from nothing), and figures of the same steps."""
    ours, theirs = weights(several), weights(one)
    begun = load_file(QUICKSTART / "model/model.safetensors")
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs) ** 0.5
    moved = sum(float((w.double() - begun.get(name, torch.zeros(()))).square().sum()) for name, w in theirs.items())
    assert apart < tolerance * moved**0.5, several
    found = figures(several)
    expected = [row for row in figures(one) if row["step"] >= found[0]["step"]]
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, rel=1e-5 if tolerance < SHORT else 2e-3), several


def test_two_processes_give_the_result_of_one(folder: Path) -> None:
    runs = {name: flags.split() for name, (_, flags) in CASES.items()}
    train(folder, {f"2 {name}": flags for name, flags in runs.items()}, 2)
    train(folder, {f"1 {name}": flags for name, flags in runs.items()}, 1)
    for name, (tolerance, _) in CASES.items():
        assert_same(f"2 {name}", f"1 {name}", tolerance)
    left = [sorted(path.name for path in Path(f"{n} the best checkpoint").glob("checkpoint-*")) for n in (1, 2)]
    assert left[0] == left[1]
    assert len(left[0]) == 2


def test_two_processes_then_one_then_three_give_the_result_of_one(folder: Path) -> None:
    """Resumed within an epoch, whose last step has an example for one of the three alone."""
    flags = ADAMW.split()
    train(folder, {"straight": flags}, 1)
    train(folder, {"two": flags}, 2)
    train(folder, {"then one": [*flags, f"{T}resume_from_checkpoint=two/checkpoint-2"]}, 1)
    train(folder, {"then three": [*flags, f"{T}resume_from_checkpoint=then one/checkpoint-4"]}, 3)
    for name, first in (("two", 1), ("then one", 3), ("then three", 5)):
        assert [row["step"] for row in figures(name) if "loss" in row] == list(range(first, STEPS + 1))
        assert_same(name, "straight", ADAPTIVE)
