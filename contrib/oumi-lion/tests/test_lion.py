"""Lion against its formula, and as a component."""

import pytest
import torch
from oumi_lion._lion import LionOptimizer
from oumi_lion.optimizer import Lion

from oumi_kernel.testing import check_component


def test_two_steps_follow_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = LionOptimizer([parameter], lr=0.1, betas=(0.9, 0.5), weight_decay=0.1)
    expected, momentum = [1.0, -2.0], [0.0, 0.0]
    for gradient in ([3.0, -1.0], [-1.0, -1.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        for i, g in enumerate(gradient):
            direction = 0.9 * momentum[i] + 0.1 * g
            expected[i] = expected[i] * (1 - 0.1 * 0.1) - 0.1 * (1 if direction > 0 else -1)
            momentum[i] = 0.5 * momentum[i] + 0.5 * g
    assert parameter.tolist() == pytest.approx(expected)


def test_the_kernel_takes_it() -> None:
    assert check_component(Lion, "optimizers") is Lion
