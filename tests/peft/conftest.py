"""Runs of the real product with an adapter on the tiny model, and what they leave, opened by the library alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import QUICKSTART
from tests.trainers.conftest import train

__all__ = ["TINY", "logits", "opened", "train"]
TINY = QUICKSTART / "model"


def opened(folder: Path) -> Any:
    """Open an adapter as its users do: the model that it names, and the adapter beside it."""
    name = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    with patch.dict(os.environ):  # BOFT leaves CXX at gcc, and torch's compiler would take it
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), folder)


def logits(model: Any) -> torch.Tensor:
    """Return the logits of a fixed text."""
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits
