"""FSDP on the CPU: two processes and three give the result of one, and each holds its part.

Three starts serve all of these tests: two processes do runs one after another, one goes on from what they left, and
three go on from that.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oumi_kernel import CheckpointError
from oumi_kernel.parts import consolidate
from tests.conftest import ROOT
from tests.strategies.materials import write_run

pytestmark = pytest.mark.slow

Outcome = dict[str, dict[str, Any]]
ON = ("--fsdp.enable_fsdp",)
LAYERS = (*ON, "--fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP")
LORA = ("--training.use_peft", "--training.save_steps=0")
QLORA = (*LORA, "--peft.q_lora", "--peft.bnb_4bit_quant_type=nf4", "--peft.bnb_4bit_quant_storage=float32")
ONE_ROW = ("--data.train.datasets[0].sample_count=1", *LORA)
ADAM = ("--training.optimizer=adamw", "--training.learning_rate=1e-3", "--training.lr_scheduler_type=constant")
PARTS = ("--fsdp.state_dict_type=SHARDED_STATE_DICT",)
GO_ON = ("--training.try_resume_from_last_checkpoint",)
ONE_STEP = ("--training.max_steps=1", "--training.save_steps=0")
SAME = {
    "full": (*LAYERS, "--fsdp.forward_prefetch=true", "--training.metrics_function=token_accuracy"),
    "grad_op": (*ON, "--fsdp.sharding_strategy=SHARD_GRAD_OP", "--training.enable_gradient_checkpointing"),
    "hybrid": (
        *ON,
        "--fsdp.sharding_strategy=HYBRID_SHARD",
        "--fsdp.auto_wrap_policy=SIZE_BASED_WRAP",
        "--fsdp.min_num_params=5000",
    ),
    "offloaded": (
        *LAYERS,
        "--fsdp.sharding_strategy=NO_SHARD",
        "--fsdp.cpu_offload=true",
        "--fsdp.backward_prefetch=NO_PREFETCH",
    ),
}
"""Runs with the result of one process."""


def batches(per_device: int, accumulation: int = 1) -> tuple[str, str]:
    return (
        f"--training.per_device_train_batch_size={per_device}",
        f"--training.gradient_accumulation_steps={accumulation}",
    )


def run(output: str, *flags: str, marked: bool = False, **environment: Any) -> dict[str, Any]:
    given = [f"--training.output_dir={output}", *flags]
    return {"config": "train.yaml", "flags": given, "environment": environment, "marked": marked}


def together(folder: Path, size: int, *runs: dict[str, Any]) -> list[Outcome]:
    """Do runs in `size` processes, and return what each of these saw, by the name of the run."""
    (folder / "runs.json").write_text(json.dumps(runs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.strategies.runs_together", str(folder / "runs.json")]
    place = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | place | {"PYTHONPATH": str(ROOT), "OUMI_CACHE_DIR": str(folder / "cache")}
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=600)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * size, errors[0][-3000:]
    names = [one["flags"][0].partition("=")[2] for one in runs]
    return [dict(zip(names, json.loads((folder / f"{rank}.json").read_text()), strict=True)) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, rows, and a configuration of six steps of eight examples."""
    folder = tmp_path_factory.mktemp("fsdp")
    write_run(
        folder,
        max_steps=6,
        optimizer="sgd",  # Adam divides rounding errors of small gradients by their size
        learning_rate=0.1,
        per_device_eval_batch_size=2,
        eval_steps=3,
        save_steps=2,
    )
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Outcome]:
    """Return what two processes saw."""
    accumulated = batches(2, accumulation=2)
    return together(
        folder,
        2,
        *(run(name, *accumulated, *flags, **_nodes(name)) for name, flags in SAME.items()),
        run("bf16", *accumulated, *LAYERS, "--fsdp.mixed_precision=bf16", "--training.save_steps=0"),
        run("lora", *batches(1), *LAYERS, *ONE_ROW),
        run("qlora", *batches(2), *LAYERS, *QLORA),
        run("marked", *batches(1), *LAYERS, *ONE_STEP, marked=True),
        run("marked_lora", *batches(1), *LAYERS, *ONE_STEP, *LORA, marked=True),
        run("parts", *batches(3), *LAYERS, *ADAM, *PARTS, "--training.max_steps=2"),
        run("whole", *batches(3), *LAYERS, *ADAM, "--training.max_steps=2"),
        run("refused", *batches(3), *LAYERS, "--fsdp.transformer_layer_cls=LlamaLayer"),
    )


@pytest.fixture(scope="module")
def one(folder: Path, two: list[Outcome]) -> Outcome:
    """Return what one process saw: it does the same from the beginning, and goes on from what two left."""
    further = ("--training.max_steps=4", *GO_ON)
    (seen,) = together(
        folder,
        1,
        run("one", *batches(4, accumulation=2), "--training.metrics_function=token_accuracy"),
        run("alone", *batches(4, accumulation=2), *LAYERS, MASTER_ADDR=""),
        run("one_lora", *batches(2), *ONE_ROW),
        run("one_qlora", *batches(4), *QLORA),
        run("calm", *batches(6), *ADAM),
        run("parts", *batches(6), *ADAM, *further),
        run("whole", *batches(6), *ADAM, *further),
    )
    return seen


@pytest.fixture(scope="module")
def three(folder: Path, one: Outcome) -> list[Outcome]:
    """Return what three processes saw, which went on from what one left."""
    return together(folder, 3, *(run(name, *batches(2), *LAYERS, *ADAM, *PARTS, *GO_ON) for name in ("parts", "whole")))


def _nodes(name: str) -> dict[str, Any]:
    """Return an environment in which each process is on a machine of its own, for a model that is divided within."""
    return {"LOCAL_WORLD_SIZE": "1"} if name == "hybrid" else {}


def figures(folder: Path) -> list[dict[str, float]]:
    kept = ("step", "loss", "grad_norm", "eval_loss")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in kept if key in row} for row in rows]


def assert_same_result(ours: Path, theirs: Path, file: str = "model.safetensors") -> None:
    left, right = load_file(ours / file), load_file(theirs / file)
    assert left.keys() == right.keys()
    for name in right:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6, msg=name)
    for ours_then, theirs_then in zip(figures(ours), figures(theirs), strict=True):
        assert ours_then == pytest.approx(theirs_then, rel=1e-5)


@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_the_result_of_one(name: str, folder: Path, two: list[Outcome], one: Outcome) -> None:
    assert [seen[name]["exit_code"] for seen in two] == [0, 0]
    assert_same_result(folder / name, folder / "one")


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["HYBRID_SHARD", "HYBRID_SHARD_ZERO2"])
def test_two_machines_of_two_processes_give_the_result_of_one(strategy: str, folder: Path, one: Outcome) -> None:
    flags = (*batches(1, accumulation=2), *LAYERS, f"--fsdp.sharding_strategy={strategy}")
    seen = together(folder, 4, run(strategy, *flags, LOCAL_WORLD_SIZE="2"))
    assert [outcome[strategy]["exit_code"] for outcome in seen] == [0] * 4
    held = [outcome[strategy]["here"] for outcome in seen]
    assert held[:2] == held[2:]
    assert sum(held[:2]) == seen[0][strategy]["whole"]
    assert_same_result(folder / strategy, folder / "one")


def test_metrics_see_the_batches_of_all_processes(folder: Path, two: list[Outcome], one: Outcome) -> None:
    last = [json.loads((folder / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("full", "one")]
    assert last[0]["eval_token_accuracy"] == pytest.approx(last[1]["eval_token_accuracy"], rel=1e-6)


def test_one_process_may_be_asked_for_fsdp(folder: Path, one: Outcome) -> None:
    assert one["alone"]["divided"] == one["alone"]["parameters"] > 0
    assert_same_result(folder / "alone", folder / "one")


def test_each_process_holds_its_part_of_weights_and_optimizer_state(two: list[Outcome]) -> None:
    for name, share in (("full", 2), ("grad_op", 2), ("hybrid", 1), ("offloaded", 1), ("parts", 2), ("lora", 2)):
        first, second = (seen[name] for seen in two)
        assert first["divided"] == second["divided"] == first["parameters"] > 0, name
        assert first["processes"] == second["processes"] == [2], name
        assert first["here"] + second["here"] == first["whole"] * 2 // share, name
        assert first["state_here"] + second["state_here"] == first["state_whole"] * 2 // share, name
    assert two[0]["parts"]["state_whole"] == 2 * two[0]["parts"]["whole"]


def test_adapters_are_the_same_also_on_quantised_weights_and_where_a_process_has_no_example(
    folder: Path, two: list[Outcome], one: Outcome
) -> None:
    for name in ("lora", "qlora"):
        assert two[0][name]["divided"] == two[0][name]["parameters"]
        assert_same_result(folder / name, folder / f"one_{name}", "adapter_model.safetensors")


def test_for_an_adapter_the_first_process_alone_gathers_what_trains_alone(two: list[Outcome]) -> None:
    first, second = (seen["lora"] for seen in two)
    assert 0 < first["gathered"] == first["trained"] < first["parameters"]
    assert second["gathered"] == 0
    assert two[0]["full"]["gathered"] == two[0]["full"]["parameters"]


def test_what_is_saved_has_the_part_of_every_process(folder: Path, two: list[Outcome]) -> None:
    for name, file in (("marked", "model.safetensors"), ("marked_lora", "adapter_model.safetensors")):
        for key, tensor in load_file(folder / name / file).items():
            half = -(-len(tensor) // 2)
            expected = torch.cat([torch.ones_like(tensor[:half]), torch.full_like(tensor[half:], 2)])
            assert torch.equal(tensor, expected), key


def test_bf16_computes_with_rounded_weights_and_trains_exact_ones(folder: Path, two: list[Outcome], one: Any) -> None:
    ours, theirs = (load_file(folder / name / "model.safetensors") for name in ("bf16", "one"))
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    pairs = zip(figures(folder / "bf16"), figures(folder / "one"), strict=True)
    gap = max(abs(row["loss"] / exact["loss"] - 1) for row, exact in pairs if "loss" in row)
    assert 1e-6 < gap < 0.01
    assert any(not torch.equal(ours[name], ours[name].bfloat16().float()) for name in theirs)


@pytest.mark.parametrize("name", ["parts", "whole"])
def test_a_run_goes_on_with_another_number_of_processes_and_another_strategy(
    name: str, folder: Path, three: list[Outcome]
) -> None:
    assert [seen[name]["exit_code"] for seen in three] == [0] * 3
    assert three[0][name]["processes"] == [3]
    ours, theirs = figures(folder / name), figures(folder / "calm")
    steps = [[row for row in rows if "loss" in row] for rows in (ours, theirs)]
    for row, expected in zip(*steps, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    left, right = (load_file(folder / which / "model.safetensors") for which in (name, "calm"))
    for key in right:
        torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=1e-4, msg=key)


def test_a_checkpoint_in_parts_has_one_of_each_process_and_no_whole_model(folder: Path, two: list[Outcome]) -> None:
    saved = folder / "parts/checkpoint-2"
    assert not (saved / "model.safetensors").exists()
    for kind in ("model_parts", "optimizer_parts"):
        assert len(list((saved / kind).glob("*.safetensors"))) == 2
    assert not [path for path in saved.rglob("*") if path.suffix in (".metadata", ".distcp", ".pt", ".bin")]


def test_parts_are_consolidated_to_the_model_that_would_have_been_written_whole(
    folder: Path, two: list[Outcome], tmp_path: Path
) -> None:
    written = consolidate(folder / "parts/checkpoint-2", tmp_path / "model")
    ours, theirs = (load_file(path / "model.safetensors") for path in (written, folder / "whole/checkpoint-2"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    question = torch.arange(12)[None]
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (written, folder / "whole/checkpoint-2")]
    assert torch.equal(*(model(question).logits for model in models))
    assert (written / "tokenizer_config.json").exists()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_part_that_is_damaged_is_named_with_a_weight_of_it(
    damage: str, folder: Path, two: list[Outcome], tmp_path: Path
) -> None:
    shutil.copytree(folder / "parts", tmp_path / "run")
    part = sorted((tmp_path / "run/checkpoint-2/model_parts").glob("*.safetensors"))[1]
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"model_parts/{part.name} is missing or cut short.*such as [a-z]+"):
        consolidate(tmp_path / "run/checkpoint-2")


def test_a_layer_that_the_model_does_not_have_is_refused_with_those_it_has(two: list[Outcome]) -> None:
    for seen in two:
        assert seen["refused"]["exit_code"] == 2
        assert "the model has no LlamaLayer. Its repeated modules: LlamaDecoderLayer" in seen["refused"]["error"]
