"""The chunked loss of a head against torch's cross-entropy of all logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from oumi_plugins.trainers import _cross_entropy


@pytest.fixture(params=[1, 7, 1000], ids=lambda size: f"chunks of {size}")
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cross_entropy, "CHUNK_BYTES", {"cpu": 4 * 31 * request.param})
    monkeypatch.setattr(_cross_entropy, "FEWEST", 1)


def case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(31, 8, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(31, (20,), generator=generator)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_and_gradients_equal_those_of_all_logits(dtype: torch.dtype, tolerance: float, smoothing: float) -> None:
    hidden, weight, targets = case(dtype)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum", label_smoothing=smoothing)
    wanted = torch.autograd.grad(expected * 0.37, (hidden, weight))
    loss = _cross_entropy.summed_loss(hidden, weight, targets, smoothing)
    found = torch.autograd.grad(loss * 0.37, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for gradient, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_chunks")
def test_bfloat16_products_keep_the_softmax_and_the_sum_over_chunks_in_float32() -> None:
    hidden, weight, targets = case(torch.float32)
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    wanted = torch.autograd.grad(expected, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _cross_entropy.summed_loss(hidden, weight, targets, 0.0)
    assert loss.dtype == torch.float32
    found = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)
    for gradient, reference in zip(found, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.02 * reference.norm()


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = case(torch.float32)
    loss = _cross_entropy.summed_loss(hidden, weight.detach(), targets, 0.0)
    (found,) = torch.autograd.grad(loss, (hidden,))
    expected = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    torch.testing.assert_close(found, torch.autograd.grad(expected, (hidden,))[0], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_chunks")
def test_losses_and_predictions_of_single_tokens_equal_torchs() -> None:
    hidden, weight, targets = case(torch.float32)
    head = torch.nn.Linear(8, 31, bias=False)
    head.weight.data = weight.detach()
    losses, predictions = _cross_entropy.token_losses(hidden.detach(), head, targets)
    logits = hidden.detach() @ weight.detach().t()
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    assert torch.equal(predictions, logits.argmax(-1))


def test_the_logits_of_all_tokens_are_never_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = _cross_entropy._chunk
    monkeypatch.setattr(_cross_entropy, "CHUNK_BYTES", {"cpu": 4 * 31 * 6})
    monkeypatch.setattr(_cross_entropy, "FEWEST", 1)
    monkeypatch.setattr(
        _cross_entropy, "_chunk", lambda logits, *rest: seen.append(len(logits)) or whole(logits, *rest)
    )
    _cross_entropy.summed_loss(*case(torch.float32), 0.0).backward()
    assert seen == [6, 6, 6, 2]
