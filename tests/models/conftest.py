"""The component under test, called as the kernel calls it, on the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel.config import ModelParams, TrainingConfig, TrainingParams
from oumi_kernel.contracts import Run
from oumi_plugins.models.hf import HF
from tests.conftest import QUICKSTART

TINY = QUICKSTART / "model"


class Loader:
    """The component `hf` with one model section."""

    def __init__(self, folder: Path, *, seed: int = 42, **model: Any) -> None:
        self.params = ModelParams(**{"model_name": str(TINY)} | model)
        config = TrainingConfig(model=self.params, training=TrainingParams(seed=seed, output_dir=str(folder)))
        self.run = Run(config=config, folder=folder)
        self.component = HF()

    def tokenizer(self) -> Any:
        return self.component.oumi_build_tokenizer(params=self.params, run=self.run)

    def model(self, tokenizer: Any = None, **arguments: Any) -> Any:
        tokenizer = tokenizer or self.tokenizer()
        return self.component.oumi_build_model(
            params=self.params, tokenizer=tokenizer, arguments=arguments, run=self.run
        )

    def save(self, model: Any, tokenizer: Any, directory: Path) -> None:
        done = self.component.oumi_save_model(
            model=model, state=model.state_dict, tokenizer=tokenizer, directory=directory, run=self.run
        )
        assert done is True


Load = Callable[..., Loader]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Return `load(model_max_length=128, ...)`: the component with these keys of the section `model`."""
    return lambda **model: Loader(tmp_path, **model)
