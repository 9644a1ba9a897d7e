"""Every field is typed, documented and within its own range, and the specification's blocks mean what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from oumi_kernel.config import TrainingConfig
from oumi_kernel.config.derived import peft_enabled, warmup_steps
from oumi_kernel.config.rules import RULES
from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import load_text
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.schema import Params, dump, field_docs
from tests.conftest import ROOT, minimal_yaml

SPECIFICATION = (ROOT / "tests/fixtures/training_configuration.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", SPECIFICATION, re.DOTALL | re.MULTILINE)


def structs(struct: type[Params] = TrainingConfig, path: str = "") -> Iterator[tuple[str, type[Params]]]:
    yield path, struct
    for field in msgspec.structs.fields(struct):
        for inner in re.findall(r"(\w+)", str(field.type)):
            found = next((c for c in all_structs() if c.__name__ == inner), None)
            if found and found is not struct:
                yield from structs(found, f"{path}.{field.name}")


def all_structs() -> list[type[Params]]:
    found, waiting = [], [Params]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            if cls.__module__.startswith("oumi_kernel.config"):
                found.append(cls)
    return found


FIELDS = [(struct, field) for struct in all_structs() for field in msgspec.structs.fields(struct)]


def test_there_is_something_to_look_at() -> None:
    assert len(FIELDS) > 220
    assert len(BLOCKS) == 9
    assert len(REFERENCE) == 5
    assert {name for name, _ in structs()} >= {
        ".model",
        ".data.train.datasets",
        ".training.grpo",
        ".deepspeed.offload_param",
    }


@pytest.mark.parametrize(
    ("struct", "field"), FIELDS, ids=lambda item: getattr(item, "name", getattr(item, "__name__", ""))
)
def test_a_field_says_what_it_does_and_its_default_is_within_its_range(struct: type[Params], field: Any) -> None:
    doc = field_docs(struct).get(field.name, "")
    assert doc.endswith("."), f"{struct.__name__}.{field.name}: {doc!r}"
    if not field.required:
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        raw = msgspec.to_builtins(default)
        assert msgspec.convert(raw, field.type) == default


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("struct", "field"),
    [pair for pair in FIELDS if "float" in str(pair[1].type)],
    ids=lambda item: getattr(item, "name", getattr(item, "__name__", "")),
)
def test_a_number_is_finite(struct: type[Params], field: Any, value: float) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(value, field.type)


def merged(block: dict[str, Any]) -> dict[str, Any]:
    """Put a fragment under a minimal model and data."""
    base = {"model": {"model_name": "m"}, "data": {"train": {"datasets": [{"dataset_name": "text_sft"}]}}}
    return base | block


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:30])
def test_every_block_of_the_specification_loads(block: str) -> None:
    from oumi_kernel.loading import to_yaml

    loaded = load_text(to_yaml(merged(read_yaml(block, "spec").value)), "spec")
    assert isinstance(loaded.config, TrainingConfig)


REFERENCE = [block for block in BLOCKS if re.match(r"(model|data|training|peft|fsdp):\n  (#|lora|enable|train)", block)]
EXAMPLES = {"model.model_name", "data.train.collator_name", "data.train.datasets", "data.validation.datasets"}


@pytest.mark.parametrize("block", REFERENCE, ids=lambda block: block[:8])
def test_the_defaults_are_those_of_the_specification(block: str) -> None:
    """What the reference blocks write is the default; names of models, data and collators are examples."""
    written = read_yaml(block, "spec").value
    defaults = dump(load_text(minimal_yaml(), "c").config)
    config = dump(load_text(__import__("json").dumps(merged(written)), "c").config)
    for section in written:
        for path, value in leaves(config[section], section):
            if not any(path.startswith(example) for example in EXAMPLES):
                assert value == dict(leaves(defaults[section], section))[path], path


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}")
    else:
        yield path, tree


SECOND = "      - dataset_name: other\n"
BREACHES = {
    "there_is_something_to_train_on": "model:\n  model_name: m\n",
    "the_run_has_an_end": minimal_yaml(training="  num_train_epochs: 0\n"),
    "mixture_proportions_are_all_or_none": minimal_yaml(data="        mixture_proportion: 1.0\n" + SECOND),
    "mixture_proportions_sum_to_one": minimal_yaml(
        data="        mixture_proportion: 0.5\n" + SECOND + "        mixture_proportion: 0.4\n"
    ),
    "packing_needs_a_stream": minimal_yaml(data="    pack: true\n"),
    "every_split_has_the_same_collator": minimal_yaml(data="  validation:\n    collator_name: text_with_padding\n"),
    "the_model_is_compiled_by_training": minimal_yaml(model="  compile: true\n"),
    "one_sharding_library": minimal_yaml(fsdp="  enable_fsdp: true\n", deepspeed="  enable_deepspeed: true\n"),
    "compiling_needs_original_parameters": minimal_yaml(
        training="  compile: true\n", fsdp="  enable_fsdp: true\n  use_orig_params: false\n"
    ),
    "mixed_precision_needs_float32_weights": minimal_yaml(
        model="  torch_dtype_str: bfloat16\n", training="  mixed_precision_dtype: bf16\n", peft="  lora_r: 4\n"
    ),
    "deepspeed_batch_size_is_derived": minimal_yaml(deepspeed="  enable_deepspeed: true\n  train_batch_size: 8\n"),
    "rewards_are_for_grpo": minimal_yaml(training="  reward_functions: [a]\n"),
    "bfloat16_weights_lose_small_updates": minimal_yaml(model="  torch_dtype_str: bf16\n"),
    "deepspeed_agrees_with_training": minimal_yaml(
        deepspeed="  enable_deepspeed: true\n  train_micro_batch_size_per_gpu: 3\n"
    ),
    "an_adapter_is_on_or_off": minimal_yaml(training="  use_peft: true\n", peft="  peft_method: None\n"),
    "quantised_shards_have_one_dtype": minimal_yaml(fsdp="  enable_fsdp: true\n", peft="  q_lora: true\n"),
    "quantised_weights_need_an_adapter": minimal_yaml(peft="  q_lora: true\n  peft_method: none\n"),
    "quantised_weights_are_trained_ones": minimal_yaml(
        model="  load_pretrained_weights: false\n", peft="  q_lora: true\n"
    ),
    "quantised_weights_come_from_common_floats": minimal_yaml(
        model="  torch_dtype_str: double\n", peft="  q_lora: true\n"
    ),
    "quantised_layers_compute_in_common_floats": minimal_yaml(
        peft="  q_lora: true\n  bnb_4bit_compute_dtype: float64\n"
    ),
    "quantised_weights_are_stored_in_a_format": minimal_yaml(peft="  q_lora: true\n  bnb_4bit_quant_storage: auto\n"),
    "quantised_weights_are_not_taken_apart": minimal_yaml(peft="  q_lora: true\n  lora_init_weights: PISSA\n"),
    "quantised_layers_compute_as_the_others_do": minimal_yaml(
        training="  mixed_precision_dtype: bf16\n", peft="  q_lora: true\n"
    ),
    "keys_of_quantisation_wait_for_it": minimal_yaml(peft="  bnb_4bit_quant_type: nf4\n"),
    "warm_up_is_given_once": minimal_yaml(training="  warmup_steps: 0\n  warmup_ratio: 0.1\n"),
    "keys_wait_for_their_switch": minimal_yaml(training="  dataloader_prefetch_factor: 2\n"),
    "seeds_need_something_random": minimal_yaml(data="    seed: 1\n"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_finds_its_breach_and_nothing_else(rule: Any) -> None:
    text = BREACHES[rule.__name__]
    try:
        found = load_text(text, "c").warnings
    except ConfigError as error:
        found = error.problems
    reference = list(rule(load_text(minimal_yaml(), "c").config))
    assert [problem.code for problem in found] == ["rule"]
    assert found[0].place is not None or rule.__name__ == "there_is_something_to_train_on"
    assert reference == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (minimal_yaml(deepspeed="  zero_stage: ZERO_2\n  offload_param: {}\n"), "only with zero_stage: ZERO_3"),
        (minimal_yaml(deepspeed="  offload_optimizer: {}\n"), "only with zero_stage ZERO_1"),
        (minimal_yaml(training="  gold: {uld_hybrid_matched_weight: 1}\n"), "set both hybrid weights, or neither"),
        (minimal_yaml(model="  processor_kwargs: {model_name: x}\n"), "repeats keys of `model`: model_name"),
        (minimal_yaml(data="        dataset_kwargs: {split: x}\n"), "repeats keys of the dataset: split"),
    ],
)
def test_a_rule_of_one_section_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_text(text, "c")


@pytest.mark.parametrize(
    ("peft", "training", "expected"),
    [
        ("", "", False),
        ("  lora_r: 4\n", "", True),
        ("  peft_method: none\n", "", False),
        ("  lora_r: 4\n", "  use_peft: false\n", False),
        ("  enable_peft: false\n  lora_r: 4\n", "", False),
        ("", "  use_peft: true\n", True),
    ],
)
def test_peft_is_on_when_its_section_says_something_and_no_key_says_no(
    peft: str, training: str, expected: bool
) -> None:
    loaded = load_text(minimal_yaml(peft=peft, training=training), "c")
    assert peft_enabled(loaded.config, loaded.document.given("peft")) is expected


@pytest.mark.parametrize(
    ("lines", "steps"), [("", 0), ("  warmup_ratio: 0.1\n", 10), ("  warmup_ratio: 0.1\n  warmup_steps: 3\n", 3)]
)
def test_warmup_steps_win_over_the_ratio(lines: str, steps: int) -> None:
    assert warmup_steps(load_text(minimal_yaml(training=lines), "c").config.training, 95) == steps
