"""What a configuration names, and how what is wrong with that is told."""

from __future__ import annotations

import importlib.util

import pytest

from oumi_kernel.errors import ConfigError, PluginError
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, Resolution, resolve, scan
from tests.conftest import minimal_yaml


def resolved(text: str = "", *flags: str, **sections: str) -> Resolution:
    catalogue = scan()
    overrides, _ = split_overrides(flags)
    loaded = load_text(text or minimal_yaml(**sections), "c.yaml", overrides, sections=catalogue.sections)
    return resolve(loaded, catalogue)


def names(resolution: Resolution) -> dict[str, str]:
    return {choice.entry.family: choice.entry.value.partition(":")[2] for choice in resolution.selected}


def test_a_minimal_configuration_selects_a_component_of_every_family_that_a_run_needs() -> None:
    assert names(resolved()) == {
        "models": "HF",
        "strategies": "Single",
        "datasets": "TextSft",
        "trainers": "Sft",
        "optimizers": "AdamW",
        "schedulers": "Linear",
        "collators": "TextWithPadding",
        "trackers": "TensorBoard",
        "plugins": "Progress",
    }


@pytest.mark.parametrize("name", ["TRL_SFT", "trl-sft", "HF", "oumi", "sft"])
def test_a_name_is_read_in_any_case(name: str) -> None:
    assert names(resolved("", f"--training.trainer_type={name}"))["trainers"] == "Sft"


def test_several_problems_of_components_are_told_at_once_with_their_places() -> None:
    found = resolved(
        training="  optimizer: adamw_troch\n  lr_scheduler_type: cosine\n  lr_scheduler_kwargs: {cycles: 1}\n"
        "  metrics_function: bleuu\n  trainer_kwargs: {max_lenght: 5}\n"
    )
    assert [(problem.code, problem.path, problem.place.line) for problem in found.problems] == [
        ("unknown-key", "training.trainer_kwargs.max_lenght", 12),
        ("unknown-name", "training.optimizer", 8),
        ("unknown-key", "training.lr_scheduler_kwargs.cycles", 10),
        ("unknown-name", "training.metrics_function", 11),
    ]
    with pytest.raises(ConfigError, match="did you mean 'adamw_torch'"):
        found.raise_for_problems(strict=False)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--training.enable_mlflow", "mlflow needs a tracker named 'mlflow'"),
        ("--peft.lora_task_type=SEQ_CLS", "the PEFT method 'lora' does not serve this key"),
        ("--training.trainer_type=TRL_DPO", "TRL_DPO needs a trainer named 'trl_dpo'"),
        ("--training.include_alternative_mfu_metrics", "the trainer 'sft' does not serve this key"),
        ("--training.grpo.temperature=0.5", "the trainer 'sft' does not serve this key"),
    ],
)
def test_what_is_known_but_not_there_stops_a_run_and_not_a_check(flag: str, message: str) -> None:
    found = resolved("", flag)
    found.raise_for_problems(strict=False)
    with pytest.raises(ConfigError, match=message):
        found.raise_for_problems(strict=True)


def test_a_key_without_effect_is_a_warning() -> None:
    found = resolved("", "--training.ddp_find_unused_parameters=true")
    assert [warning.path for warning in found.warnings] == ["training.ddp_find_unused_parameters"]
    found.raise_for_problems(strict=True)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_missing_extra_is_one_line_with_the_install_command() -> None:
    message = r"'wandb' needs wandb, which is not installed. pip install 'oumi-kernel\[wandb\]'"
    with pytest.raises(ConfigError, match=message):
        resolved("", "--training.enable_wandb").raise_for_problems(strict=True)


def test_a_dataset_that_nobody_has_is_a_typo_a_known_type_or_a_hub_id() -> None:
    def dataset(name: str) -> Resolution:
        return resolved("", f"--data.train.datasets[0].dataset_name={name}")

    assert names(dataset("org/data"))["datasets"] == "Hub"
    assert "did you mean 'text_sft'" in dataset("text_sftt").problems[0].hint
    assert dataset("vl_sft").unavailable[0].code == "not-installed"
    assert [warning.code for warning in dataset("imdb").warnings] == ["hub-name"]


def test_the_parameters_of_a_tracker_that_is_off_are_an_error() -> None:
    found = resolved(training="  tracker_kwargs:\n    mlflow: {a: 1}\n")
    assert "no tracker named 'mlflow' is on" in found.problems[0].message


OBSERVER = """
from oumi_kernel import Component, Params, hookimpl

class Section(Params):
    level: int = 1

class Observer(Component):
    params_type = Section
    @hookimpl
    def oumi_train_start(self, step):
        pass
"""


def test_a_plugin_that_is_always_on_may_own_a_section(install) -> None:
    points = {"oumi.plugins": {"watch": "watcher:Observer"}, "oumi.sections": {"watch": "watcher:Section"}}
    install("oumi-watch", "1.0", points, watcher=OBSERVER)
    found = resolved(minimal_yaml() + "watch:\n  level: 3\n")
    (choice,) = [c for c in found.selected if c.entry.name == "watch"]
    assert choice.params.level == 3
    Kernel(found)
    wrong = resolved(minimal_yaml() + "watch:\n  levl: 3\n").problems
    found = [(problem.path, problem.distribution, problem.hint) for problem in wrong]
    assert found == [("watch.levl", "oumi-watch 1.0", "did you mean 'level'?")]


def test_a_plugin_whose_parameters_cannot_be_typed_is_at_fault_by_name(install) -> None:
    source = (
        "from oumi_kernel import Component, Params, hookimpl\nclass A(Params):\n    pass\nclass B(Params):\n    pass\n"
        "class P(Params):\n    x: A | B\nclass Lion(Component):\n    params_type = P\n    @hookimpl\n"
        "    def oumi_build_optimizer(self, groups):\n        return None\n"
    )
    install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=source)
    found = resolved(training="  optimizer: lion\n")
    assert "the parameters of oumi-lion 2.3's 'lion' cannot be typed" in found.problems[0].message
    with pytest.raises(PluginError):
        found.raise_for_problems(strict=False)


def test_what_a_hook_returns_is_checked(install) -> None:
    source = (
        "from oumi_kernel import Component, hookimpl\nclass Odd(Component):\n    @hookimpl\n"
        "    def oumi_build_metric(self):\n        return {}\n"
    )
    install("oumi-odd", "1.0", {"oumi.metrics": {"odd": "odd_plugin:Odd"}}, odd_plugin=source)
    kernel = Kernel(resolved(training="  metrics_function: odd\n"))
    with pytest.raises(PluginError, match=r"oumi-odd 1\.0.*returned a dict, which lacks compute; expected a Metric"):
        kernel.build_metrics(None)


def test_packing_needs_a_column_that_the_split_or_each_of_its_datasets_names() -> None:
    packed = "    pack: true\n    stream: true\n"
    assert not resolved(data=packed).problems  # text_sft says that it is messages
    data = f"      - dataset_name: some/stories\n{packed}"
    (problem,) = resolved(data=data).problems
    assert (problem.code, problem.path) == ("missing-key", "data.train.target_col")
    assert "pack needs target_col: 'default' does not say which column is trained on" in problem.message
    assert not resolved(data=f"{data}    target_col: text\n").problems
    assert not resolved(data="      - dataset_name: some/stories\n    stream: true\n").problems
