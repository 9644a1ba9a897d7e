"""What the benchmark trains: models with random weights, and chats of varied length out of the shipped answers.

    python -m tests.benchmarks.materials FOLDER --model small --rows 240 [--length 512] [--full]

Nothing is downloaded. Everything is a function of the arguments, so that two machines train the same thing.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import ROOT, log

QUICKSTART = ROOT / "configs/quickstart"
SEED = 42
BATCH = 8
LONGEST = 512
HELD_OUT = 60
VOCABULARY = 8192
SHAPES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768},
    "135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""small: 7.6 million parameters. 135m: the shape of SmolLM2-135M, 134.5 million."""

Chat = list[dict[str, str]]


def build(folder: Path, model: str, rows: int, longest: int = LONGEST, *, full: bool = False) -> None:
    """Write `model/`, `train.jsonl` (what we read), `in_order.jsonl` (the order we train in), `held_out.jsonl`."""
    from oumi_plugins.trainers._order import epoch_order

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(longest)
    build_model(model, tokenizer, longest).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    length = lambda chat: len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])  # noqa: E731
    chats = list(build_chats("train", rows, None if full else longest, length, shortest=longest if full else 0))
    held_out = list(build_chats("validation", HELD_OUT, longest, length))
    order = epoch_order(len(chats), SEED, 0)
    write_rows(folder / "train.jsonl", chats)
    write_rows(folder / "in_order.jsonl", [chats[index] for index in order])
    write_rows(folder / "held_out.jsonl", held_out)
    lengths = [min(length(chats[index]), longest) for index in order]
    figures = {"rows": rows, "tokens": sum(lengths), "longest": max(lengths), "padding": padding_share(lengths)}
    (folder / "materials.json").write_text(json.dumps(figures, indent=2))
    log(f"{folder}: {figures}")


def build_tokenizer(longest: int = LONGEST):
    """Return a byte-level BPE tokenizer with ChatML, trained on the shipped chats."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    unknown, begin, end, pad = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [unknown, begin, end, pad]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((message["content"] for pair in read_pairs("train") for message in pair), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=longest,
        chat_template=(QUICKSTART / "model/chat_template.jinja").read_text(),
    )


def build_model(name: str, tokenizer, longest: int = LONGEST):
    """Return a Llama with random weights; its vocabulary is at least as large as the tokenizer's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "bos_token_id": None} | SHAPES[name]
    torch.manual_seed(SEED)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return LlamaForCausalLM(LlamaConfig(**shape, **ends, max_position_embeddings=longest))


def read_pairs(split: str) -> list[Chat]:
    """Return the shipped questions with their answers."""
    lines = (QUICKSTART / f"data/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def build_chats(split: str, rows: int, longest: int | None, length, shortest: int = 0) -> Iterator[Chat]:
    """Yield conversations of several questions and answers: about log-normal in length, or all of `shortest` or more.

    Args:
        split: The shipped split that they are made of.
        rows: How many.
        longest: Most tokens; None: what the shortest needs.
        length: Returns the tokens of a conversation.
        shortest: Fewest tokens.
    """
    draw, pairs = random.Random(f"{SEED} {split}"), read_pairs(split)
    for _ in range(rows):
        wanted = min(draw.lognormvariate(0.0, 0.85) * 0.25, 0.99) * longest if longest else shortest
        chat = list(draw.choice(pairs))
        while length(chat) < wanted:
            longer = [*chat, *draw.choice(pairs)]
            if longest and length(longer) > longest:
                break
            chat = longer
        yield chat


def padding_share(lengths: list[int], size: int = BATCH) -> float:
    """Return the share of padding in batches of `size` rows in this order, each padded to its longest row."""
    batches = [lengths[first : first + size] for first in range(0, len(lengths), size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def write_rows(file: Path, chats: list[Chat]) -> None:
    """Write conversations as JSON lines."""
    file.write_text("".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in chats), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--rows", type=int, default=240)
    parser.add_argument("--length", type=int, default=LONGEST)
    parser.add_argument("--full", action="store_true", help="every chat has at least --length tokens")
    given = parser.parse_args()
    build(given.folder, given.model, given.rows, given.length, full=given.full)
