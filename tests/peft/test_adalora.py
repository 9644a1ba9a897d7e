"""AdaLoRA: the library's loss, steps and ranks, also where a run was stopped in between."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oumi_kernel import ConfigError
from oumi_plugins.trainers._order import epoch_order
from tests.peft.conftest import TINY, logits, opened
from tests.trainers import reference_trainer
from tests.trainers.conftest import Train
from tests.trainers.test_loop import oracle_rows

STEPS = 6
FLAGS = (
    "--peft.peft_method=adalora",
    "--peft.lora_target_modules=[q_proj, v_proj]",
    "--peft.peft_kwargs={init_r: 6, target_r: 3, tinit: 1, tfinal: 1}",
    "--training.optimizer=adamw",
    "--training.weight_decay=0",
    "--training.learning_rate=0.02",
    "--training.max_grad_norm=null",
    f"--training.max_steps={STEPS}",
)


def test_losses_and_ranks_are_those_of_the_library(train: Train, tmp_path: Path) -> None:
    run = train(*FLAGS)
    rows = oracle_rows(tmp_path)
    fields = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 1, "total_step": STEPS}
    torch.manual_seed(42)
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], lora_alpha=8, **fields)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.02, weight_decay=0.0)
    ordered = [rows[index] for epoch in (0, 1) for index in epoch_order(len(rows), 42, epoch)]
    losses = []
    for step, batch in enumerate(reference_trainer.batches_of(ordered, 8)):
        results = [reference_trainer.row_loss(model.base_model.model, r["input_ids"], r["labels"]) for r in batch]
        loss = sum(value for value, _ in results) / sum(count for _, count in results)
        one = torch.tensor([batch[0]["input_ids"]])
        term = model(input_ids=one, labels=one).loss - model.base_model.model(input_ids=one, labels=one).loss
        (loss + term).backward()
        optimizer.step()
        model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert run.figures("loss") == pytest.approx(losses, rel=1e-4)
    kept = json.loads((run.folder / "adapter_config.json").read_text())["rank_pattern"]
    assert {name: sum(ranks) for name, ranks in kept.items()} == {
        name.replace(".default", ""): sum(ranks) for name, ranks in model.active_peft_config.rank_pattern.items()
    }
    assert sum(sum(ranks) for ranks in kept.values()) == 4 * 3
    assert not (run.folder / "adalora.safetensors").exists()
    torch.testing.assert_close(logits(opened(run.folder)), logits(model), rtol=1e-2, atol=1e-2)


def test_a_run_that_goes_on_ends_with_the_same_bits(train: Train) -> None:
    straight = train(*FLAGS, "--training.save_steps=1", name="straight")
    for step in (1, 3, 5):
        resume = f"--training.resume_from_checkpoint={straight.folder}/checkpoint-{step}"
        resumed = train(*FLAGS, "--training.save_steps=1", resume, name=f"from{step}")
        for file in ("adapter_model", "adalora", "optimizer"):
            expected = load_file(straight.folder / f"checkpoint-{STEPS}/{file}.safetensors")
            found = load_file(resumed.folder / f"checkpoint-{STEPS}/{file}.safetensors")
            assert found.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("{init_r: 2, target_r: 3}", r"peft_kwargs\.init_r: is 2; ranks shrink"),
        ("{tinit: 4, tfinal: 2}", r"peft_kwargs\.tinit: 4 steps before ranks shrink and 2 after leave none of 6"),
    ],
)
def test_ranks_that_cannot_shrink_are_refused(train: Train, kwargs: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*FLAGS, f"--peft.peft_kwargs={kwargs}")
