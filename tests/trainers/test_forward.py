"""Flat batches against each sequence alone, over architectures and attention implementations; and what falls back."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers
from torch.nn import functional as F

from oumi_kernel import ConfigError
from oumi_plugins.trainers._forward import Forward

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | GPT2),
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}),
}
WITHOUT_SDPA = {"gemma2", "gpt_oss"}
"""Architectures for which transformers has no sdpa: it cannot cap scores, nor add sinks to them."""
LENGTHS = (9, 1, 17, 4)


def build(name: str) -> transformers.PreTrainedModel:
    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**(SHAPE | settings))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # strong weights, so that a leak between sequences is large
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model.train()


def sequences(lengths=LENGTHS, vocabulary: int = 97) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (length,), generator=generator) for length in lengths]


def padded_batch(rows: list[torch.Tensor], left: bool = False) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    batch = {name: torch.zeros(len(rows), width, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        batch["input_ids"][index, place], batch["attention_mask"][index, place] = row, 1
        batch["labels"][index, place] = torch.where(torch.arange(len(row)) % 3 == 1, -100, row)
    return batch


def alone(model, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Negative log-likelihoods of each row's supervised tokens, from the row in a forward pass of its own."""
    losses = []
    for row in rows:
        labels = torch.where(torch.arange(len(row)) % 3 == 1, -100, row)
        logits = model(input_ids=row[None], use_cache=False).logits[0].float()
        kept = labels[1:] != -100
        losses.append(F.cross_entropy(logits[:-1][kept], labels[1:][kept], reduction="none"))
    return losses


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def chosen(model, attention: str | None, smoothing: float = 0.0) -> Forward:
    forward = Forward(model, ignore=-100, smoothing=smoothing)
    forward.choose(attention, nullcontext)
    return forward


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, None) for name in MODELS]
    + [(name, "sdpa") for name in MODELS if name not in WITHOUT_SDPA]
    + [(name, "eager") for name in MODELS if name != "gpt_oss"],
)
def test_flat_losses_and_gradients_are_those_of_each_sequence_alone(name: str, attention: str | None) -> None:
    model = build(name)
    model.set_attn_implementation("eager")
    rows = sequences()
    expected = torch.cat(alone(model, rows))
    expected.sum().backward()
    wanted = gradients(model)
    if attention:
        model.set_attn_implementation(attention)
    forward = chosen(model, attention)
    assert forward.is_flat, forward.why_padded
    assert model.training
    batch, count = forward.supervise(padded_batch(rows))
    assert (count, batch["tokens"], batch["input_ids"].shape) == (len(expected), sum(LENGTHS), (1, sum(LENGTHS)))
    torch.testing.assert_close(forward.token_losses(batch)[0], expected, rtol=1e-4, atol=1e-5)
    loss = forward.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected.sum(), rtol=1e-5, atol=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        scale = float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(found[key] / scale, gradient / scale, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize("lengths", [(700, 40), (513, 512)])
def test_long_sequences_are_attended_to_as_short_ones_are(lengths: tuple[int, ...]) -> None:
    model = build("mistral")
    rows = sequences(lengths)
    with torch.no_grad():
        expected = torch.cat(alone(model, rows))
        forward = chosen(model, None)
        found, _, _ = forward.token_losses(forward.supervise(padded_batch(rows))[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2", None])
def test_attention_of_gpus_is_flat_too(attention: str | None) -> None:
    model = build("llama").to("cuda", torch.bfloat16 if attention == "flash_attention_2" else torch.float32)
    rows = [row.cuda() for row in sequences()]
    expected = torch.cat(alone(model, rows))
    expected.sum().backward()
    wanted = gradients(model)
    if attention:
        model.set_attn_implementation(attention)
    forward = chosen(model, attention)
    assert forward.is_flat, forward.why_padded
    batch, _ = forward.supervise(padded_batch(sequences()))
    placed = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    forward.loss(placed).backward()
    for key, gradient in gradients(model).items():
        assert (gradient - wanted[key]).norm() <= 0.05 * wanted[key].norm() + 1e-6, key


def test_an_attention_that_mixes_sequences_is_found_out_and_batches_are_padded() -> None:
    """With eager attention this architecture does not look at where positions begin again."""
    model = build("gpt_oss")
    model.set_attn_implementation("eager")
    rows = sequences()
    with torch.no_grad():
        expected = torch.cat(alone(model.eval(), rows))
        forward = chosen(model, "eager")
        assert not forward.is_flat
        found, _, _ = forward.token_losses(forward.supervise(padded_batch(rows))[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_recurrent_model_gets_padded_batches_and_says_why() -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    forward = chosen(model, None)
    assert not forward.is_flat
    assert forward.why_padded == "sequences laid end to end are not kept apart by this model"
    rows = sequences()
    batch, _ = forward.supervise(padded_batch(rows))
    assert batch["input_ids"].shape == (len(rows), max(LENGTHS))
    with torch.no_grad():
        found, _, _ = forward.token_losses(batch)
        torch.testing.assert_close(found, torch.cat(alone(model, rows)), rtol=1e-4, atol=1e-4)


def test_a_model_that_leaks_between_sequences_is_found_out() -> None:
    """The same architecture, with an attention that forgets where sequences begin."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("leaking", sdpa_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register("leaking", lambda **options: None)
    model = build("llama")
    model.set_attn_implementation("leaking")
    assert not chosen(model, "leaking").is_flat


@pytest.mark.parametrize("name", ["gemma2", "granite", "cohere"])
def test_logits_that_are_changed_after_the_head_are_not_computed_from_the_head_alone(name: str) -> None:
    assert chosen(build(name), None)._head is None
    assert chosen(build("llama"), None)._head is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_cap_on_logits_is_noticed_while_logits_are_small(attention: str | None, dtype: torch.dtype) -> None:
    model = build("gemma2").to(dtype)
    if attention:
        model.set_attn_implementation(attention)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(0.001)  # tied to the head
    assert chosen(model, attention)._head is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Lfm2", "Bloom"])
def test_a_model_with_weak_ties_between_sequences_is_found_out_in_16_bits_too(name: str, dtype: torch.dtype) -> None:
    shape = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    lfm2 = {"num_key_value_heads": 4, "layer_types": ["conv", "full_attention"]}
    shape |= lfm2 if name == "Lfm2" else {"n_head": 4}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**shape)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    forward = chosen(model, None)
    assert not forward.is_flat
    assert model.config._attn_implementation != "oumi_rows"


def test_a_number_format_that_the_model_cannot_compute_in_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: object) -> None:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    model = build("llama").to(torch.bfloat16)
    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(ConfigError, match=r"model\.torch_dtype_str: the model cannot compute with weights of torch.bf"):
        chosen(model, None)


@pytest.mark.slow
def test_a_compiled_model_is_right_and_is_not_compiled_again_for_other_lengths() -> None:
    model = build("llama")
    forward, plain = chosen(model, None), chosen(model, None)
    mixtures = [(9, 4, 17), (5, 30), (12, 3, 8, 2), (40,), (6, 7, 21)]
    batches = [plain.supervise(padded_batch(sequences(lengths)))[0] for lengths in mixtures]
    expected = []
    for batch in batches:
        loss = plain.loss(batch)
        loss.backward()
        expected.append((loss.detach(), gradients(model)))
    forward.compile("model")
    graphs = []
    for batch, (loss, wanted) in zip(batches, expected, strict=True):
        found = forward.loss(batch)
        found.backward()
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-4)
        for key, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=1e-3, msg=key)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[-1] == graphs[1]


def test_left_padding_is_taken_off_like_right_padding() -> None:
    forward = chosen(build("llama"), None)
    rows = sequences()
    right, left = (forward.supervise(padded_batch(rows, left=side))[0] for side in (False, True))
    for name, value in right.items():
        assert torch.equal(left[name], value) if isinstance(value, torch.Tensor) else left[name] == value


@pytest.mark.parametrize("attention", [None, "sdpa"])
def test_no_label_crosses_the_border_of_a_packed_sequence(attention: str | None) -> None:
    model = build("llama")
    rows = sequences()
    forward = chosen(model, attention)
    pack = {
        "input_ids": torch.cat(rows)[None],
        "attention_mask": torch.ones(1, sum(LENGTHS), dtype=torch.int64),
        "labels": torch.cat(rows)[None],
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
    }
    batch, count = forward.supervise(pack)
    assert count == sum(length - 1 for length in LENGTHS)
    assert batch["lengths"] == list(LENGTHS)
    expected = [F.cross_entropy(model(input_ids=row[None]).logits[0, :-1], row[1:], reduction="sum") for row in rows]
    torch.testing.assert_close(forward.loss(batch), sum(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_loss_equals_torchs(smoothing: float) -> None:
    model = build("llama")
    rows = sequences()
    forward = chosen(model, None, smoothing)
    batch, _ = forward.supervise(padded_batch(rows))
    total = torch.zeros(())
    for row in rows:
        labels = torch.where(torch.arange(len(row)) % 3 == 1, -100, row)
        if bool((labels[1:] != -100).any()):
            logits = model(input_ids=row[None]).logits[0, :-1]
            total = total + F.cross_entropy(logits, labels[1:], reduction="sum", label_smoothing=smoothing)
    total.backward()
    wanted = gradients(model)
    loss = forward.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-5)
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-3, atol=1e-4, msg=key)
    forward._head = None  # the way of models whose logits are changed after the head
    torch.testing.assert_close(forward.loss(batch), total, rtol=1e-5, atol=1e-5)
