"""The whole product against the library in a plain loop of torch: step for step the same losses, the same adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_scheduler

from oumi_plugins.trainers._order import epoch_order
from tests.conftest import QUICKSTART
from tests.peft.conftest import TINY, logits, opened
from tests.trainers import reference_trainer
from tests.trainers.conftest import Finished, Train
from tests.trainers.test_loop import oracle_rows

QV = ["q_proj", "v_proj"]
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "lora": (("--peft.lora_target_modules=[q_proj, v_proj]",), {"target_modules": QV}),
    "the architecture's default": (("--peft.lora_r=8",), {}),
    "dora": (
        ("--peft.lora_target_modules=[q_proj, v_proj]", "--peft.peft_kwargs.use_dora=true"),
        {"target_modules": QV, "use_dora": True},
    ),
    "rslora": (
        ("--peft.lora_target_modules=[q_proj, v_proj]", "--peft.peft_kwargs.use_rslora=true"),
        {"target_modules": QV, "use_rslora": True},
    ),
    "all-linear and the head in full": (
        ('--peft.lora_target_modules=["all-linear"]', "--peft.lora_modules_to_save=[lm_head]"),
        {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    ),
    "the head adapted": (("--peft.lora_target_modules=[q_proj, lm_head]",), {"target_modules": ["q_proj", "lm_head"]}),
    "an expression": (
        (r"--peft.lora_target_modules=.*layers\.1\..*(q|k)_proj", "--peft.lora_bias=all"),
        {"target_modules": r".*layers\.1\..*(q|k)_proj", "bias": "all"},
    ),
    "some left out": (
        ("--peft.lora_target_modules=all-linear", "--peft.lora_exclude_modules=[.*mlp.*, '.*1\\.self_attn\\..*']"),
        {"target_modules": [f"layers.0.self_attn.{name}_proj" for name in "qkvo"]},
    ),
}


def reference(fields: dict[str, Any], *, method: str = "LoraConfig") -> Any:
    """Return the library's model, drawn from the seed of the run."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    torch.manual_seed(42)
    return peft.get_peft_model(model, getattr(peft, method)(task_type="CAUSAL_LM", **fields))


def assert_same_adapter(run: Finished, model: Any) -> None:
    expected = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(run.folder / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-4, msg=name)
    torch.testing.assert_close(logits(opened(run.folder)), logits(model)[:, -37:], rtol=1e-3, atol=1e-3)


def steps(folder: Path, model: Any, optimizer: Any, schedule: Any = None) -> list[float]:
    rows = oracle_rows(folder)
    ordered = [rows[index] for index in epoch_order(len(rows), 42, 0)]
    return reference_trainer.train(
        model, [ordered], rows_per_step=8, optimizer=optimizer, schedule=schedule, max_norm=1.0
    )


FLAGS = ("--training.optimizer=adamw", "--training.weight_decay=0", "--training.learning_rate=0.02")


def adamw(model: Any, rate: float = 0.02) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, weight_decay=0.0)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_adapter_are_those_of_the_library(train: Train, tmp_path: Path, name: str) -> None:
    flags, fields = CASES[name]
    run, model = train(*flags, *FLAGS), reference(fields)
    assert run.figures("loss") == pytest.approx(steps(tmp_path, model, adamw(model)), rel=1e-5)
    assert_same_adapter(run, model)
    log = (run.folder / "logs/rank_0.log").read_text()
    assert "batches are padded" not in log


@pytest.mark.parametrize("checkpointing", [{}, {"use_reentrant": True}, {"use_reentrant": False}])
def test_it_is_so_however_a_step_is_computed(train: Train, tmp_path: Path, checkpointing: dict[str, bool]) -> None:
    flags, fields = CASES["lora"]
    again = [f"--training.gradient_checkpointing_kwargs.{key}={value}" for key, value in checkpointing.items()]
    again += ["--training.enable_gradient_checkpointing=true"] if checkpointing else []
    cut = ("--training.per_device_train_batch_size=2", "--training.gradient_accumulation_steps=4")
    run, model = train(*flags, *FLAGS, *cut, *again), reference(fields)
    assert run.figures("loss") == pytest.approx(steps(tmp_path, model, adamw(model)), rel=1e-5)
    assert_same_adapter(run, model)


def test_packed_and_padded_batches_give_the_same(train: Train, tmp_path: Path) -> None:
    flags, fields = CASES["lora"]
    whole = ("--training.per_device_train_batch_size=24", "--training.max_steps=1")
    packed = ("--data.train.pack", "--data.train.stream", "--model.model_max_length=512")
    model, lines = reference(fields), (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:24]))
    losses = reference_trainer.train(
        model, [oracle_rows(tmp_path)], rows_per_step=24, optimizer=adamw(model), max_norm=1.0
    )
    for number, extra in enumerate(((), packed, ("--model.attn_implementation=eager",))):
        run = train(*flags, *FLAGS, *whole, *extra, name=f"run{number}")
        assert run.figures("loss") == pytest.approx(losses, rel=1e-5)
        assert_same_adapter(run, model)


def test_a_prompt_is_padded_and_trains_as_the_library_trains_it(train: Train, tmp_path: Path) -> None:
    tokens = 4
    run = train("--peft.peft_method=prompt_tuning", f"--peft.peft_kwargs.num_virtual_tokens={tokens}", *FLAGS)
    model = reference({"num_virtual_tokens": tokens}, method="PromptTuningConfig")
    inner = model.forward
    model.forward = lambda **inputs: CutOutput(inner(**inputs).logits[:, tokens:])
    assert run.figures("loss") == pytest.approx(steps(tmp_path, model, adamw(model)), rel=1e-5)
    found = load_file(run.folder / "adapter_model.safetensors")["prompt_embeddings"]
    torch.testing.assert_close(found, model.prompt_encoder.default.embedding.weight.data, rtol=1e-4, atol=1e-6)


class CutOutput:
    """The logits of the real tokens."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_lora_plus_is_that_of_the_library(train: Train, tmp_path: Path) -> None:
    flags, fields = CASES["lora"]
    fast = ("--peft.peft_kwargs.lora_plus_ratio=16", "--training.learning_rate=0.002")
    schedule = ("--training.lr_scheduler_type=linear", "--training.warmup_steps=1", "--training.max_steps=3")
    run, model = train(*flags, *FLAGS, *fast, *schedule), reference(fields)
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.002, loraplus_lr_ratio=16)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    losses = steps(tmp_path, model, optimizer, get_scheduler("linear", optimizer, 1, 3))
    assert run.figures("loss") == pytest.approx(losses, rel=1e-5)
    assert_same_adapter(run, model)
    plain = train(*flags, *FLAGS, "--training.learning_rate=0.002", *schedule, name="plain")
    assert plain.figures("learning_rate") == run.figures("learning_rate")
    assert plain.figures("loss")[2] != pytest.approx(run.figures("loss")[2], rel=1e-3)
