"""Settings of a CPU: faster products of matrices are float32 products, are put back, and leave little behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.strategies import _cpu
from oumi_plugins.strategies._single import SingleStrategy
from tests.conftest import minimal_yaml

CHOSEN = torch.backends.mkldnn.matmul
PROGRAM = """
import torch
from pathlib import Path
from oumi_plugins.strategies._cpu import faster_matmul, keep_freed_memory

def multiply(lengths):
    for length in lengths:
        states = torch.zeros(2, length, 32)
        torch.bmm(states, states.transpose(1, 2))

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

faster_matmul(sequences=1)
keep_freed_memory()
multiply(range(300, 400))
before = resident()
multiply(range(1, 300))
print(resident() - before)
"""
"""Prints how many bytes 299 further shapes leave behind, all of them smaller than those before."""


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident set from /proc")
def test_shapes_that_were_seen_leave_no_memory_behind() -> None:
    """Each of them would leave 0.3 MB in either of two stores, which do not know how much they hold."""
    settings = (_cpu.KEPT_BY_ONEDNN, _cpu.KEPT_BY_TORCH)
    environment = {name: value for name, value in os.environ.items() if name not in settings}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30e6


@pytest.mark.parametrize(
    ("rows", "pack", "products"), [(1, False, 64), (8, False, 64), (100, False, 800), (3, True, 192)]
)
def test_the_products_of_a_layer_are_kept(
    rows: int, pack: bool, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six a sequence and ten of all tokens; were one too few kept, each would be gone when the next layer needs it."""
    clear(monkeypatch)
    training = f"  per_device_train_batch_size: {rows}\n"
    loaded = load_text(minimal_yaml(training=training, data="    pack: true\n    stream: true\n" * pack), "c")
    how = SingleStrategy(Run(config=loaded.config, folder=loaded.folder))
    how.setup()
    how.close()
    assert int(os.environ[_cpu.KEPT_BY_ONEDNN]) == products >= 6 * rows + 10


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch)
    monkeypatch.setenv(_cpu.KEPT_BY_TORCH, "200")
    monkeypatch.setenv(_cpu.KEPT_BY_ONEDNN, "300")
    _cpu.keep_few_products(8)
    assert os.environ[_cpu.KEPT_BY_TORCH] == "200"
    assert os.environ[_cpu.KEPT_BY_ONEDNN] == "300"


def clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the settings out of the environment until the test ends, whatever it then puts there."""
    for name in (_cpu.KEPT_BY_ONEDNN, _cpu.KEPT_BY_TORCH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
