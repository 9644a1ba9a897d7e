"""Mean loss of a saved model on held-out chats: one evaluator for every trainer's output.

    python -m tests.benchmarks.held_out MATERIALS MODEL

Plain torch in float32, one chat at a time: the sum of token losses over their number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def held_out_loss(materials: Path, model_folder: Path) -> float:
    """Return the loss in nats per token; chats are tokenised by the materials' tokenizer, not by the output's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(materials / "model")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in (materials / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        ids = tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=True)["input_ids"]
        tokens = torch.tensor([ids[: tokenizer.model_max_length]])
        with torch.no_grad():
            logits = model(input_ids=tokens[:, :-1]).logits[0].double()
        total += float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum"))
        count += tokens.shape[1] - 1
    return total / count


if __name__ == "__main__":
    sys.stdout.write(f"{held_out_loss(Path(sys.argv[1]), Path(sys.argv[2])):.6f}\n")
