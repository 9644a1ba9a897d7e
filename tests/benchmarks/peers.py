"""The same training through `transformers.Trainer` or TRL's SFTTrainer. Runs in the peers' own environment.

    python peers.py SETTINGS.json

Stands alone: it imports nothing of the project. Plain settings are what a user of the library writes down; tuned ones
add what anyone can switch on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

FLOAT32_ERROR = 1e-5


class Steps(TrainerCallback):
    """Writes a line for each step, as `metrics.jsonl` has it; counts tokens where batches are collated."""

    def __init__(self, file, collate):
        self.file, self.collate, self.tokens = Path(file), collate, []

    def __call__(self, features):
        batch = self.collate(features)
        before = self.tokens[-1] if self.tokens else 0
        mask = batch.get("attention_mask")
        self.tokens.append(before + (batch["input_ids"].numel() if mask is None else int(mask.sum())))
        return batch

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs and state.is_world_process_zero:
            step = state.global_step
            line = {"step": step, "loss": float(logs["loss"]), "tokens": self.tokens[step - 1]}
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")


def arguments(settings):
    """Return the settings that all variants share, as Trainer calls them."""
    return {
        "output_dir": settings["output_dir"],
        "per_device_train_batch_size": settings["batch_size"],
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": settings.get("sampling", "sequential"),
        "bf16": settings.get("bf16", False),
        "use_cpu": True,
        "ddp_backend": "gloo" if "WORLD_SIZE" in os.environ else None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings["seed"],
    }


def choose_fast_matmul():
    """Let oneDNN multiply float32 where that is as exact as before on this machine."""
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    exact = a.double() @ b.double()
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    error = float((a @ b - exact).norm() / exact.norm())
    if error > FLOAT32_ERROR:
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    sys.stdout.write(f"oneDNN matmul: relative error {error:.1e}, {'kept' if error <= FLOAT32_ERROR else 'not kept'}\n")


def with_trainer(settings, model, tokenizer, rows):
    """Return a Trainer on chats that are tokenised beforehand; the loss is on all tokens."""

    def tokenize(row):
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"][: settings["max_length"]]
        return {"input_ids": ids, "labels": ids, "length": len(ids)}

    data = rows.map(tokenize, remove_columns=rows.column_names)
    if settings.get("sampling") != "group_by_length":
        data = data.remove_columns("length")
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments(settings)),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def with_trl(settings, model, tokenizer, rows):
    """Return an SFTTrainer on chats, which it renders and tokenises itself."""
    from trl import SFTConfig, SFTTrainer

    packing = {"packing": True, "packing_strategy": "bfd"} if settings.get("pack") else {}
    config = SFTConfig(**arguments(settings), max_length=settings["max_length"], **packing)
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def main():
    """Train as the settings say and save the model."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    if settings.get("fast_matmul"):
        choose_fast_matmul()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    rows = load_dataset("json", data_files=settings["rows"], split="train")
    trainer = {"trainer": with_trainer, "trl": with_trl}[settings["peer"]](settings, model, tokenizer, rows)
    steps = Steps(settings["lines"], trainer.data_collator)
    trainer.data_collator = steps
    trainer.add_callback(steps)
    trainer.train()
    trainer.save_model(settings["output_dir"])


if __name__ == "__main__":
    main()
