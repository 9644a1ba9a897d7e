"""An optimizer step that is taken only where its flag allows it."""

from __future__ import annotations

from typing import Any

import torch


def step_unless(bad: torch.Tensor, optimizer: Any) -> None:
    """Step the optimizer, or change nothing of weights and state where `bad`, a bool scalar on the device, is true.

    On a CPU the flag is there to be read. On an accelerator reading it would wait for the device, so optimizers that
    can decide there get it as they would from `torch.amp.GradScaler`; for the others it is read.
    """
    bad = bad.to(optimizer.param_groups[0]["params"][0].device)  # weights may rest in the host's memory
    if bad.device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False):
        step_flagged(bad, optimizer)
    elif not bool(bad):
        optimizer.step()


def step_flagged(bad: torch.Tensor, optimizer: Any) -> None:
    """Let the kernel of an optimizer of torch's with `fused=True` decide, without a look from the host."""
    optimizer.grad_scale, optimizer.found_inf = None, bad.float()
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf
