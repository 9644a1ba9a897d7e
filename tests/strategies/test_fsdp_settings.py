"""FSDP before any process meets another: what is divided, what is refused, and what a dry run says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from oumi_kernel import ConfigError
from oumi_kernel.config.fsdp import FSDPParams
from oumi_kernel.contracts import Run, World
from oumi_kernel.dry_run import dry_run
from oumi_kernel.loading import load_config, load_text, split_overrides
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.rehearsal import Division
from oumi_plugins.strategies._fsdp import FsdpStrategy
from oumi_plugins.strategies._units import apart, units_of
from tests.conftest import QUICKSTART, minimal_yaml


def skeleton() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(QUICKSTART / "model"))


def params(**fields: Any) -> FSDPParams:
    return msgspec.convert(fields, FSDPParams)


def strategy(size: int, fsdp: str, training: str = "  seed: 7\n") -> FsdpStrategy:
    loaded = load_text(minimal_yaml(training=training, fsdp=f"  enable_fsdp: true\n{fsdp}"), "c")
    run = Run(config=loaded.config, folder=loaded.folder, world=World(size=size), rehearsal=True)
    return FsdpStrategy(loaded.config.fsdp, run)


def test_layers_are_those_that_the_model_declares_and_the_rest_is_the_whole_models() -> None:
    model = skeleton()
    units = units_of(model, params(auto_wrap_policy="TRANSFORMER_BASED_WRAP"))
    assert {type(unit).__name__ for unit in units} == {"LlamaDecoderLayer"}
    assert len(units) == model.config.num_hidden_layers
    rest = {id(parameter) for parameter in apart(model, units)[-1]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in rest}
    assert names == {name for name, _ in model.named_parameters() if ".layers." not in name}


def test_a_class_may_be_named_with_its_module() -> None:
    name = "transformers.models.llama.modeling_llama.LlamaDecoderLayer"
    found = units_of(skeleton(), params(auto_wrap_policy="TRANSFORMER_BASED_WRAP", transformer_layer_cls=name))
    assert {type(unit).__name__ for unit in found} == {"LlamaDecoderLayer"}


def test_units_by_size_have_as_many_parameters_of_their_own_and_never_embeddings_or_head() -> None:
    model = skeleton()
    units = units_of(model, params(auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=5000))
    *own, rest = apart(model, units)
    assert units
    assert all(sum(parameter.numel() for parameter in part) >= 5000 for part in own)
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    assert ends <= {id(parameter) for parameter in rest}
    assert sum(len(part) for part in (*own, rest)) == len(list(model.parameters()))


def test_no_policy_leaves_one_unit_the_whole_model() -> None:
    assert units_of(skeleton(), params()) == []


@pytest.mark.parametrize(
    ("fsdp", "training", "message"),
    [
        ("  state_dict_type: LOCAL_STATE_DICT\n", "", r"fsdp\.state_dict_type: FSDP2 has no flat parts.*SHARDED"),
        ("  mixed_precision: fp16\n", "", r"fsdp\.mixed_precision: gradients in fp16 vanish"),
    ],
)
def test_what_fsdp2_cannot_do_is_refused_with_what_it_can(fsdp: str, training: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(2, fsdp, training or "  seed: 7\n")


def test_machines_with_different_numbers_of_processes_cannot_have_a_copy_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="as many processes on each machine: of 3, 2 are on this one"):
        strategy(3, "  sharding_strategy: HYBRID_SHARD\n")


@pytest.mark.parametrize("change", ["scalar", "format"])
def test_a_model_that_cannot_be_divided_is_refused_with_the_weight(change: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if change == "scalar":
        model.scale = nn.Parameter(torch.ones(()))
    else:
        model[1].half()
    message = "scale is a single number" if change == "scalar" else r"0\.weight in float32, 1\.weight in float16"
    with pytest.raises(ConfigError, match=message):
        units_of(model, params())


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw_8bit", "galore_adamw", "apollo_adamw", "lion_8bit"])
def test_optimizers_that_need_whole_weights_are_refused_before_anything_is_loaded(optimizer: str) -> None:
    text = minimal_yaml(training=f"  optimizer: {optimizer}\n", fsdp="  enable_fsdp: true\n")
    found = resolve(load_text(text, "c"), scan(), world_size=2)
    said = [str(problem) for problem in found.unavailable if problem.path == "fsdp.enable_fsdp"]
    assert len(said) == 1
    assert "it needs whole weights, not parts; adamw" in said[0]
    assert not resolve(load_text(text.replace(optimizer, "adamw"), "c"), scan(), world_size=2).unavailable


def test_a_process_is_said_to_hold_its_part_and_what_is_gathered() -> None:
    model = skeleton()
    layers = "  auto_wrap_policy: TRANSFORMER_BASED_WRAP\n"
    whole = sum(parameter.numel() * 4 for parameter in model.parameters())
    layer = sum(parameter.numel() * 4 for parameter in model.model.layers[0].parameters())
    rest = whole - layer * len(model.model.layers)
    held = strategy(4, layers).division(model)
    assert (held.weights, held.gradients, held.optimizer_state) == (4, 4, 4)
    assert gathered(held) == rest + 2 * layer
    assert gathered(strategy(4, layers + "  mixed_precision: bf16\n").division(model)) == (rest + 2 * layer) // 2
    assert gathered(strategy(4, layers + "  sharding_strategy: SHARD_GRAD_OP\n").division(model)) == whole
    assert strategy(4, layers + "  cpu_offload: true\n").division(model).host >= {"weights", "optimizer state"}


def gathered(held: Division) -> int | None:
    (amount,) = [part.bytes for part in held.parts if part.what == "gathered weights"]
    return amount


class Kept:
    """Keeps the estimate (see `oumi_kernel.dry_run.Report`)."""

    peak = 0

    def examples(self, split: str, previews: Sequence[Any]) -> None:
        """Not looked at."""

    data: Any = lambda *_: None
    steps: Any = data
    missing: Any = data

    def estimate(self, estimate: Any) -> None:
        """Keep the peak."""
        self.peak = estimate.peak_bytes


def test_a_dry_run_of_two_processes_needs_none_and_estimates_less_for_each(tmp_path: Path) -> None:
    flags = [
        f"--training.output_dir={tmp_path / 'out'}",
        "--training.save_steps=0",
        "--training.save_final_model=false",
        "--fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP",
    ]
    peaks = []
    for on, size in (("false", 1), ("true", 2)):
        overrides, _ = split_overrides([*flags, f"--fsdp.enable_fsdp={on}"])
        loaded, report = load_config(QUICKSTART / "train.yaml", overrides), Kept()
        dry_run(loaded, resolve(loaded, scan(), world_size=size), World(size=size), 0, report)
        peaks.append(report.peak)
    assert not torch.distributed.is_initialized()
    assert 0 < peaks[1] < peaks[0]


def test_a_dry_run_refuses_layers_that_the_model_does_not_have(tmp_path: Path) -> None:
    flags = ["--fsdp.enable_fsdp", "--fsdp.auto_wrap_policy=TRANSFORMER_BASED_WRAP"]
    flags.append("--fsdp.transformer_layer_cls=GPT2Block")
    overrides, _ = split_overrides([*flags, f"--training.output_dir={tmp_path / 'out'}"])
    loaded = load_config(QUICKSTART / "train.yaml", overrides)
    with pytest.raises(ConfigError, match=r"the model has no GPT2Block\. Its repeated modules: LlamaDecoderLayer"):
        dry_run(loaded, resolve(loaded, scan(), world_size=2), World(size=2), 0, Kept())
