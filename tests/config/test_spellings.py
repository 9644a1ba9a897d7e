"""Oumi's own keys are there with their defaults, and closed sets take every spelling that users write."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from oumi_kernel.config import TrainingConfig
from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import load_text, to_yaml
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.plugins.keys import value_at
from oumi_kernel.schema import ConfigEnum, Params, dump
from tests.conftest import ROOT, minimal_yaml

OUMI_ONLY = read_yaml((ROOT / "tests/fixtures/oumi_only_defaults.yaml").read_text(), "oumi").value
TABLES_IN_FULL = {"deepspeed", "training.grpo", "training.gkd", "training.gold", "training.profiler"}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}".removeprefix("."))
    else:
        yield path, tree


def defaults() -> dict[str, Any]:
    return dump(load_text(minimal_yaml(), "c").config)


@pytest.mark.parametrize(
    ("path", "value"), list(leaves(OUMI_ONLY)), ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_key_that_only_oumi_has_is_there_with_its_default(path: str, value: Any) -> None:
    found = dict(leaves(defaults()))[path]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("section", sorted(TABLES_IN_FULL))
def test_a_section_that_only_oumi_has_holds_nothing_else(section: str) -> None:
    ours, oumi = defaults(), OUMI_ONLY
    for part in section.split("."):
        ours, oumi = ours[part], oumi[part]
    assert set(ours) == set(oumi)


def members_of(struct: type[Params] = TrainingConfig, path: str = "") -> Iterator[tuple[str, ConfigEnum]]:
    """Yield (key, member) for every enum of the configuration."""
    for field in msgspec.structs.fields(struct):
        options = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        inner = f"{path}.{field.name}".removeprefix(".")
        for option in options:
            if isinstance(option, type) and issubclass(option, ConfigEnum):
                yield from ((inner, member) for member in option)
            elif isinstance(option, type) and issubclass(option, Params):
                yield from members_of(option, inner)


MEMBERS = list(members_of())


def test_the_enums_were_found() -> None:
    assert {"training.eval_strategy", "fsdp.sharding_strategy", "deepspeed.zero_stage"} <= {key for key, _ in MEMBERS}
    assert "deepspeed.offload_param.device" in {key for key, _ in MEMBERS}


@pytest.mark.parametrize(("key", "member"), MEMBERS, ids=lambda item: getattr(item, "name", item))
def test_an_enum_takes_names_and_values_in_any_case(key: str, member: ConfigEnum) -> None:
    names = {member.name, str(member.value)}
    spellings = {s for n in names for s in (n.upper(), n.lower(), n.title(), n.replace("_", "-"))}
    *parents, name = key.split(".")
    for spelling in spellings:
        base = read_yaml(minimal_yaml(deepspeed="  zero_stage: ZERO_3\n"), "c").value
        tree = base
        for part in parents:
            tree = tree.setdefault(part, {})
        tree[name] = spelling
        found: Any = load_text(to_yaml(base), "c").config
        for part in key.split("."):
            found = getattr(found, part)
        assert found is member, spelling


@pytest.mark.parametrize("stage", ["3", "ZERO_3", '"3"'])
def test_a_zero_stage_may_be_a_number(stage: str) -> None:
    config = load_text(minimal_yaml(deepspeed=f"  zero_stage: {stage}\n"), "c").config
    assert config.deepspeed.zero_stage.name == "ZERO_3"


def test_a_bucket_size_may_be_written_with_an_exponent() -> None:
    config = load_text(minimal_yaml(deepspeed="  reduce_bucket_size: 5e8\n"), "c").config
    assert config.deepspeed.reduce_bucket_size == 500_000_000
    assert type(config.deepspeed.reduce_bucket_size) is int


@pytest.mark.parametrize("seed", ["-1", "4294967296", "99999999999999999999"])
@pytest.mark.parametrize("section", ["training", "data"])
def test_a_seed_that_no_library_takes_is_refused(section: str, seed: str) -> None:
    line = f"  seed: {seed}\n" if section == "training" else f"        seed: {seed}\n"
    with pytest.raises(ConfigError, match=f"whole number >= 0 and <= 4294967295.*got {seed}"):
        load_text(minimal_yaml(**{section: line}), "c")


@pytest.mark.parametrize("index", ["0", "2", "-99999999999999999999"])
def test_an_ignored_label_is_no_token_and_fits_a_tensor(index: str) -> None:
    with pytest.raises(ConfigError, match=f"label_ignore_index: expected a whole number.*<= -1, or null, got {index}"):
        load_text(minimal_yaml(training=f"  label_ignore_index: {index}\n"), "c")


@pytest.mark.parametrize(
    "sections",
    [
        {"data": "    collator_name: text-with-padding\n  validation:\n    collator_name: TEXT_WITH_PADDING\n"},
        {"data": "    pack: true\n    stream: true\n"},
        {
            "data": "        mixture_proportion: 0.1\n"
            + "".join(
                f"      - dataset_name: d{i}\n        mixture_proportion: {p}\n" for i, p in enumerate((0.2, 0.7))
            )
        },
        {"training": "  trainer_type: acme-rloo\n  reward_functions: [a]\n"},
        {"training": "  trainer_type: TRL_GRPO\n  reward_functions: [a]\n  reward_function_kwargs: {a: {k: 1}}\n"},
        {"training": "  num_train_epochs: 0\n  max_steps: 1\n"},
        {"training": "  use_peft: true\n", "peft": "  peft_method: lora\n"},
        {"training": "  dataloader_num_workers: auto\n  dataloader_prefetch_factor: 2\n"},
        {"training": "  mixed_precision_dtype: bf16\n", "model": "  torch_dtype_str: f32\n"},
        {"training": "  max_grad_norm: null\n", "deepspeed": "  enable_deepspeed: true\n  gradient_clipping: 0\n"},
        {"model": "  torch_dtype_str: bfloat16\n", "deepspeed": "  enable_deepspeed: true\n  zero_stage: 3\n"},
        {
            "model": "  torch_dtype_str: bf16\n",
            "fsdp": "  enable_fsdp: true\n",
            "peft": "  q_lora: true\n  bnb_4bit_quant_storage: bfloat16\n  bnb_4bit_compute_dtype: bfloat16\n",
        },
        {"training": "  compile: true\n", "fsdp": "  enable_fsdp: true\n"},
    ],
    ids="+".join,
)
def test_what_keeps_the_rules_passes_without_a_word(sections: dict[str, str]) -> None:
    assert load_text(minimal_yaml(**sections), "c").warnings == ()


@pytest.mark.parametrize(
    ("section", "line", "path", "value"),
    [
        ("fsdp", "mixed_precision: BF16", "fsdp.mixed_precision", "bf16"),
        ("peft", "bnb_4bit_quant_type: NF4", "peft.bnb_4bit_quant_type", "nf4"),
        ("peft", "lora_bias: LORA-ONLY", "peft.lora_bias", "lora_only"),
        ("data", "  mixture_strategy: ALL_EXHAUSTED", "data.train.mixture_strategy", "all_exhausted"),
    ],
)
def test_a_word_of_a_closed_set_is_taken_in_any_case(section: str, line: str, path: str, value: str) -> None:
    assert value_at(load_text(minimal_yaml(**{section: f"  {line}\n"}), "c").config, path) == value
