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
    lower = name.lower()
    message, hint = why_not_here(lower), WAY_OUT
    if lower == "pissa_niter":
        message, hint = "the number of iterations is missing: write pissa_niter_4 for four.", ""
    if message:
        raise ConfigError(Problem(code="not-served", path="peft.lora_init_weights", message=message, hint=hint))


def why_not_here(start: object) -> str:
    """Return why the library cannot begin so on this machine, which it does again whenever such an adapter is opened.

    LoftQ puts quantised values in the place of the base weights; so does opening an adapter that began so.
    """
    if start != "loftq":
        return ""
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        return "LoftQ quantises the model's matrices on a GPU; this machine has none."
    return "" if importlib.util.find_spec("scipy") else "LoftQ needs scipy: pip install 'oumi-kernel[quant]'."
