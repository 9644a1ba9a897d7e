"""Weights are told by digests that change with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oumi_kernel.config import ModelParams
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.models import _weights
from oumi_plugins.models._weights import weights_of
from tests.conftest import QUICKSTART, minimal_yaml


@pytest.fixture
def run() -> Run:
    return Run(config=load_text(minimal_yaml(), "test.yaml", ()).config, folder=Path())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder with tensors of 400,000 bytes."""
    save_file({"a": torch.zeros(100_000), "b": torch.zeros(100_000)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def digests(folder: Path, run: Run) -> dict[str, str]:
    return weights_of(ModelParams(model_name=str(folder)), run)


def test_files_up_to_a_size_are_told_by_all_of_their_bytes(model: Path, run: Run) -> None:
    expected = {
        name: f"sha256 {hashlib.sha256((model / name).read_bytes()).hexdigest()}"
        for name in ("config.json", "model.safetensors")
    }
    assert digests(model, run) == expected


def put(name: str, place: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors[name].__setitem__(place, 1e-3)


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "first element": put("a", 0),
    "last element": put("a", -1),
    "first element of the last": put("b", 0),
    "last element of the last": put("b", -1),
    "a tensor less": lambda tensors: tensors.pop("a"),
    "another name": lambda tensors: tensors.update(c=tensors.pop("a")),
    "another shape": lambda tensors: tensors.update(a=tensors["a"].view(100, 1000)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whole", [0, 1 << 30])
def test_changed_tensors_are_noticed(
    model: Path, run: Run, change: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_weights, "WHOLE", whole)
    before = digests(model, run)
    assert digests(model, run) == before
    tensors = load_file(model / "model.safetensors")
    CHANGES[change](tensors)
    save_file(tensors, model / "model.safetensors")
    assert digests(model, run)["model.safetensors"] != before["model.safetensors"]


def test_the_inside_of_a_large_tensor_is_not_read(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_weights, "WHOLE", 0)
    before = digests(model, run)
    assert before["model.safetensors"].startswith("ends ")
    save_file(
        {"a": torch.zeros(100_000).index_fill(0, torch.tensor([50_000]), 1.0), "b": torch.zeros(100_000)},
        model / "model.safetensors",
    )
    assert digests(model, run) == before


def test_all_parts_of_a_model_count_and_nothing_else(tmp_path: Path, run: Run) -> None:
    AutoModelForCausalLM.from_pretrained(QUICKSTART / "model").save_pretrained(tmp_path, max_shard_size="200KB")
    parts = {path.name for path in tmp_path.glob("model-*.safetensors")}
    (tmp_path / "optimizer.safetensors").write_bytes(b"other")
    assert len(parts) > 1
    assert set(digests(tmp_path, run)) == {"config.json", *parts}


def test_weights_that_are_not_loaded_are_not_told(run: Run) -> None:
    assert weights_of(ModelParams(model_name=str(QUICKSTART / "model"), load_pretrained_weights=False), run) == {}


def test_a_model_of_a_hub_is_told_by_its_commit(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert digests(Path("someone/something"), run) == {}
    repository, commit = tmp_path / "models--someone--something", "0123456789abcdef0123456789abcdef01234567"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    assert digests(Path("someone/something"), run) == {"commit": commit}
