"""Each optimizer is the one that its name says, with the settings of the configuration."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run, World
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from tests.conftest import minimal_yaml
from tests.optimizers.by_hand import (
    CASES,
    DECAY,
    LR,
    STEPS,
    Case,
    available,
    build,
    eager,
    every_optimizer,
    gradients,
    groups_of,
    optimizer_of,
    step,
    tensors,
)

SERVED_BY_NOBODY = ["lomo", "adalomo", "grokadamw", "stable_adamw", "galore_adamw_8bit", "adamw_anyprecision"]


def assert_equal_steps(case: Case) -> None:
    ours, theirs = tensors(), tensors()
    found, expected = optimizer_of(case, ours), case.by_hand(theirs)
    for at in range(STEPS):
        step([found], ours, at)
        step(expected, theirs, at)
    for name, start in tensors().items():
        if case.name.startswith("galore") or "svd" in str(case.flags):  # a matrix that lies in memory in another order
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(ours[name], theirs[name]), name
        assert not torch.equal(ours[name], start), name
        assert torch.isfinite(ours[name]).all()


@pytest.mark.parametrize("case", every_optimizer())
def test_five_steps_equal_those_of_the_library_by_hand(case: Case) -> None:
    available(case)
    with eager():
        assert_equal_steps(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.needs == "torchao"], ids=lambda case: case.name)
def test_torchaos_compiled_steps_equal_those_of_the_library_by_hand(case: Case) -> None:
    available(case)
    assert_equal_steps(case)


@pytest.mark.gpu
@pytest.mark.parametrize("case", every_optimizer())
def test_steps_on_a_gpu_are_near_those_on_a_cpu(case: Case) -> None:
    available(case)
    here, there = tensors(), {name: torch.nn.Parameter(one.detach().cuda()) for name, one in tensors().items()}
    with eager():
        for parameters in (here, there):
            optimizer = optimizer_of(case, parameters)
            for at in range(STEPS):
                for name, gradient in gradients(at, parameters).items():
                    parameters[name].grad = gradient.to(parameters[name].device)
                optimizer.step()
    for name, one in here.items():
        torch.testing.assert_close(there[name].cpu(), one, rtol=0.05, atol=0.05)


def test_every_optimizer_has_a_case() -> None:
    entries = [entry for entry in scan().entries if entry.family == "optimizers"]
    tried = {case.name for case in CASES}
    ours = [entry for entry in entries if entry.distribution == "oumi-kernel"]
    assert len(ours) >= 30
    assert not [entry.name for entry in ours if not {entry.name, *entry.also} & tried]


def test_typed_parameters_reach_the_optimizer() -> None:
    group = [{"params": [("w", torch.nn.Parameter(torch.zeros(2)))], "weight_decay": 0.1}]
    assert build("adamw", group, "--training.optimizer_kwargs.amsgrad").param_groups[0]["amsgrad"]
    assert build("sgd", group, "--training.optimizer_kwargs.nesterov").param_groups[0]["nesterov"]
    with pytest.raises(ConfigError, match="nesterov needs a momentum"):
        build("sgd", group, "--training.optimizer_kwargs.nesterov", "--training.sgd_momentum=0")


@pytest.mark.parametrize("name", SERVED_BY_NOBODY)
def test_an_optimizer_that_is_not_installed_is_told_apart_from_a_typo(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs an optimizer named '{name}'; none is installed"):
        build(name, [])


@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_a_typo_in_its_parameters_is_found_with_its_place(name: str) -> None:
    yaml = minimal_yaml(training=f"  optimizer: {name}\n  optimizer_kwargs:\n    typo: 1\n")
    problems = resolve(load_text(yaml, "c.yaml"), scan()).problems
    assert [(problem.path, str(problem.place).split(" ")[0]) for problem in problems] == [
        ("training.optimizer_kwargs.typo", "c.yaml:10:5")
    ]


def test_no_optimizer_is_loaded_with_its_library() -> None:
    code = (
        "import sys\nfrom oumi_kernel.plugins import scan\ncatalogue = scan()\n"
        "[catalogue.load(entry) for entry in catalogue.entries if entry.family == 'optimizers']\n"
        "heavy = 'torch transformers bitsandbytes torchao schedulefree galore_torch apollo_torch'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    known = importlib.util.find_spec
    gone = ("bitsandbytes", "schedulefree", "galore_torch", "apollo_torch", "torchao")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in gone else known(name, *a))
    for case in CASES:
        loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.optimizer={case.name}"])[0])
        missing = resolve(loaded, scan()).unavailable
        assert bool(missing) == bool(case.needs), case.name
        if case.needs:
            assert f"'{case.name}'" in missing[0].message or "needs" in missing[0].message
            assert any(case.needs in problem.message for problem in missing)
            assert all("pip install 'oumi-kernel[" in problem.hint for problem in missing)


def test_keys_that_an_optimizer_has_no_use_for_are_warned_of() -> None:
    flags = [
        f"--training.{key}" for key in ("adam_beta1=0.5", "adam_beta2=0.5", "adam_epsilon=0.1", "sgd_momentum=0.5")
    ]
    adam = {"training.adam_beta1", "training.adam_beta2", "training.adam_epsilon"}
    kinds = ("adagrad", "rmsprop", "lion", "paged_lion", "sgd", "adafactor", "schedule_free_sgd", "galore_adafactor")
    for name in sorted({case.name for case in CASES}):
        loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.optimizer={name}", *flags])[0])
        warned = {problem.path for problem in resolve(loaded, scan()).warnings if problem.code == "no-effect"}
        expected = (adam if name.startswith(kinds) else set()) | ({"training.sgd_momentum"} if name != "sgd" else set())
        assert warned == expected, name


def test_muon_has_another_learning_rate_for_adamw_if_asked_and_none_where_nothing_is_a_matrix() -> None:
    parameters = tensors()
    optimizer = build("muon", groups_of(parameters), "--training.optimizer_kwargs.adamw_learning_rate=0.001")
    rates = {group["param_names"][0]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"layer.a.weight": LR, "experts": 0.001, "head.weight": 0.001, "embed.weight": 0.001}
    with pytest.raises(ConfigError, match="none of them trains"):
        build("muon", groups_of(parameters)[1:])
    alone = build("muon", [{"params": [("w", parameters["layer.a.weight"])], "weight_decay": DECAY}])
    assert type(alone) is torch.optim.Muon


@pytest.mark.parametrize(("name", "library"), [("galore_adamw", "galore_torch"), ("apollo_adamw", "apollo_torch")])
def test_only_matrices_of_modules_that_are_named_are_projected(name: str, library: str) -> None:
    pytest.importorskip(library)
    optimizer = build(name, groups_of(tensors()), "--training.optimizer_kwargs={target_modules: [b], rank: 4}")
    projected = [name for group in optimizer.param_groups if "rank" in group for name in group["param_names"]]
    assert projected == ["layer.b.weight"]
    with pytest.raises(ConfigError, match="'embd' matches no module whose weights train") as caught:
        build(name, groups_of(tensors()), "--training.optimizer_kwargs.target_modules=[embd]")
    assert "did you mean 'embed'?" in str(caught.value)
    with pytest.raises(ConfigError, match="no matrix that trains is projected"):
        build(name, groups_of(tensors()), "--training.optimizer_kwargs.target_modules=[embed]")


def test_norms_biases_and_embeddings_keep_32_bits_and_weights_8() -> None:
    pytest.importorskip("bitsandbytes")
    parameters = tensors()
    optimizer = build("adamw_8bit", groups_of(parameters))
    step([optimizer], parameters, 0)
    saved = optimizer.state_dict()
    names = {i: n for g in saved["param_groups"] for i, n in zip(g["params"], g["param_names"], strict=True)}
    quantised = {
        names[index]: "__bnb_optimizer_quant_state__" in values and "qmap1" in values["__bnb_optimizer_quant_state__"]
        for index, values in saved["state"].items()
    }
    assert quantised == {name: name not in ("embed.weight", "norm.weight") for name in parameters}


def test_weights_are_not_rounded_by_chance_where_several_processes_have_copies_of_them() -> None:
    pytest.importorskip("torchao")
    flag = "--training.optimizer_kwargs.bf16_stochastic_round=true"
    build("adamw_torch_8bit", groups_of(tensors()), flag)
    with pytest.raises(ConfigError, match=r"bf16_stochastic_round: each process would round its copy"):
        build("adamw_torch_8bit", groups_of(tensors()), flag, world=World(size=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["paged_ademamix_32bit", "paged_ademamix_8bit"])
def test_what_cannot_be_had_on_a_cpu_is_refused_before_anything_is_loaded(name: str) -> None:
    pytest.importorskip("bitsandbytes")
    loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.optimizer={name}"])[0])
    kernel, run = Kernel(resolve(loaded, scan())), Run(config=loaded.config, folder=loaded.folder)
    nearest = name.removeprefix("paged_").removesuffix("_32bit")
    with pytest.raises(ConfigError, match=f"needs a GPU; this machine has none.*Use {nearest}"):
        kernel.build_strategy(run)


def test_a_schedule_that_falls_is_warned_of_where_none_is_needed(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("schedulefree")
    with caplog.at_level(logging.WARNING):
        build("schedule_free_adamw", groups_of(tensors()))
        assert not caplog.text
        build("schedule_free_adamw", groups_of(tensors()), "--training.lr_scheduler_type=linear")
    assert "use constant or constant_with_warmup" in caplog.text
