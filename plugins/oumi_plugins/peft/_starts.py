"""What the ways in which an adapter may begin need of the machine."""

from __future__ import annotations

import importlib.util

import torch

from oumi_kernel import ConfigError, Problem

WAY_OUT = "Begin with another: default, gaussian, pissa, olora or eva."


def check_start_of(name: str) -> None:
    """Refuse a start that cannot be had here.

    Raises:
        ConfigError: It needs a GPU or a library that is not there, or a number that is not given.
    """
    lower, message = name.lower(), ""
    if lower == "loftq" and not (torch.cuda.is_available() or torch.xpu.is_available()):
        message = "LoftQ quantises the model's matrices on a GPU; this machine has none."
    elif lower == "loftq" and importlib.util.find_spec("scipy") is None:
        message = "LoftQ needs scipy, which is not installed."
    elif lower == "pissa_niter":
        message = "the number of iterations is missing: write pissa_niter_4 for four."
    if message:
        hint = "" if lower == "pissa_niter" else WAY_OUT
        raise ConfigError(Problem(code="not-served", path="peft.lora_init_weights", message=message, hint=hint))
