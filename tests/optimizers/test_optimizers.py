"""Each optimizer is the one that its name says, with the settings of the configuration."""

from __future__ import annotations

import pytest
import torch
import transformers

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from oumi_plugins.trainers._parameters import parameter_groups
from tests.conftest import QUICKSTART, minimal_yaml

SETTINGS = {
    "learning_rate": 0.03,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-4,
    "sgd_momentum": 0.7,
}
ADAM = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}


def build(name: str, parameter: torch.nn.Parameter, *flags: str) -> torch.optim.Optimizer:
    common = [f"--training.{key}={value}" for key, value in SETTINGS.items()]
    loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.optimizer={name}", *common, *flags])[0])
    resolution = resolve(loaded, scan())
    resolution.raise_for_problems(strict=True)
    groups = [{"params": [("w", parameter)], "weight_decay": 0.1}]
    return Kernel(resolution).build_optimizer(groups, Run(config=loaded.config, folder=loaded.folder))


REFERENCES = {
    "adam": lambda p: torch.optim.Adam([p], **ADAM, fused=True),
    "adamw": lambda p: torch.optim.AdamW([p], **ADAM, fused=True),
    "adamw_torch": lambda p: torch.optim.AdamW([p], **ADAM, fused=True),
    "adamw_torch_fused": lambda p: torch.optim.AdamW([p], **ADAM, fused=True),
    "sgd": lambda p: torch.optim.SGD([p], lr=0.03, momentum=0.7, weight_decay=0.1),
    "adafactor": lambda p: transformers.Adafactor(
        [p], lr=0.03, weight_decay=0.1, scale_parameter=False, relative_step=False
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_five_steps_equal_the_librarys(name: str) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3), torch.randn(5, 4, 3)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    found, expected = build(name, ours), REFERENCES[name](theirs)
    for gradient in gradients:
        for parameter, optimizer in ((ours, found), (theirs, expected)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert type(found) is type(expected)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, start)


def test_typed_parameters_reach_the_optimizer() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert build("adamw", parameter, "--training.optimizer_kwargs.amsgrad").param_groups[0]["amsgrad"]
    assert build("sgd", parameter, "--training.optimizer_kwargs.nesterov").param_groups[0]["nesterov"]
    with pytest.raises(ConfigError, match="nesterov needs a momentum"):
        build("sgd", parameter, "--training.optimizer_kwargs.nesterov", "--training.sgd_momentum=0")


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw", "paged_adamw_32bit", "lion_8bit"])
def test_an_optimizer_that_is_not_installed_is_told_apart_from_a_typo(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs a optimizer named '{name}'; none is installed"):
        build(name, torch.nn.Parameter(torch.zeros(1)))


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.zeros(1))
    model.model.layers[1].mlp.requires_grad_(False)
    decay, rest = parameter_groups(model, 0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all("proj" in name or name == "lm_head.weight" for name, _ in decay["params"])
    kinds = ("norm", "embed", "bias")
    assert all(any(kind in name for kind in kinds) for name, _ in rest["params"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for group in (decay, rest) for name, _ in group["params"]} == trained
    assert not any(name.startswith("model.layers.1.mlp") for name in trained)
