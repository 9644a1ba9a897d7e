"""Settings of a CPU: faster products of matrices are float32 products, and are put back."""

from __future__ import annotations

import pytest
import torch

from oumi_plugins.strategies import _cpu

CHOSEN = torch.backends.mkldnn.matmul


def test_products_are_float32_ones_and_the_setting_is_put_back() -> None:
    before = CHOSEN.fp32_precision
    found = _cpu.faster_matmul()
    try:
        left, right = torch.randn(300, 700), torch.randn(700, 400)
        exact = left.double() @ right.double()
        assert float((left @ right - exact).norm() / exact.norm()) < 2e-6
    finally:
        _cpu.restore_matmul(found)
    assert CHOSEN.fp32_precision == before


def test_products_with_the_error_of_bfloat16_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with instructions for them, where the same setting means bfloat16 indeed."""
    rounded = lambda: abs(float(torch.tensor(1.003).bfloat16()) - 1.003)  # noqa: E731
    monkeypatch.setattr(_cpu, "_matmul_error", rounded)
    before = CHOSEN.fp32_precision
    assert _cpu.faster_matmul() is None
    assert CHOSEN.fp32_precision == before


def test_the_error_is_measured_against_float64() -> None:
    assert 0 < _cpu._matmul_error() < 1e-5
