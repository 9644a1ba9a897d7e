"""From file and flags to a typed configuration: every problem at once, each with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import LoadedConfig, load_config, load_text, render_problems, split_overrides
from tests.conftest import ROOT, minimal_yaml

QUIET = settings(max_examples=120, deadline=None, derandomize=True)


def load(text: str, *flags: str) -> LoadedConfig:
    return load_text(text, "c.yaml", split_overrides(flags)[0])


def problems(text: str, *flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *flags)
    return render_problems(caught.value.problems)


BAD = """\
model:
  model_name: x
  learning_rate: 3
training:
  learnig_rate: 5e-5
  per_device_train_batch_size: 0
  num_train_epochs: three
  lora_alpha: 3
  eval_strategy: stepz
  compile: yes
  max_grad_norm: .nan
data:
  train:
    pack: true
    datasets:
      - dataset_nam: text_sft
peft:
  r: 8
  lora_r: 16
trainin:
"""


def test_every_problem_is_reported_at_once_with_its_place_and_the_way_out() -> None:
    assert problems(BAD, "--training.save_step=3") == (
        """\
c.yaml:3:3: error[unknown-key] model.learning_rate: unknown key 'learning_rate'.
   3 |   learning_rate: 3
     |   ^ this key belongs under `training`
c.yaml:5:3: error[unknown-key] training.learnig_rate: unknown key 'learnig_rate'.
   5 |   learnig_rate: 5e-5
     |   ^ did you mean 'learning_rate'?
c.yaml:6:32: error[out-of-range] training.per_device_train_batch_size: expected a whole number >= 1, got 0.
   6 |   per_device_train_batch_size: 0
     |                                ^
c.yaml:7:21: error[wrong-type] training.num_train_epochs: expected a number >= -1, got 'three'.
   7 |   num_train_epochs: three
     |                     ^
c.yaml:8:3: error[unknown-key] training.lora_alpha: unknown key 'lora_alpha'.
   8 |   lora_alpha: 3
     |   ^ this key belongs under `peft`
c.yaml:9:18: error[unknown-choice] training.eval_strategy: 'stepz' is not a valid choice.
   9 |   eval_strategy: stepz
     |                  ^ did you mean 'steps'? choices: no, steps, epoch
c.yaml:10:12: error[wrong-type] training.compile: expected true or false, got 'yes'.
  10 |   compile: yes
     |            ^ write true or false
c.yaml:11:18: error[out-of-range] training.max_grad_norm: expected a number >= 0, or null, got nan.
  11 |   max_grad_norm: .nan
     |                  ^
c.yaml:14:11: error[rule] data.train.pack: pack needs stream: true.
  14 |     pack: true
     |           ^ Set data.train.stream: true.
c.yaml:16:9: error[unknown-key] data.train.datasets[0].dataset_nam: unknown key 'dataset_nam'.
  16 |       - dataset_nam: text_sft
     |         ^ did you mean 'dataset_name'?
c.yaml:16:9: error[missing-key] data.train.datasets[0].dataset_name: 'dataset_name' is required here.
  16 |       - dataset_nam: text_sft
     |         ^
c.yaml:18:3: error[conflict] peft.r: means peft.lora_r: 8, but peft.lora_r is there too and says 16.
  18 |   r: 8
     |   ^
c.yaml:20:1: error[unknown-key] trainin: unknown key 'trainin'.
  20 | trainin:
     | ^ did you mean 'training'?
command line: error[unknown-key] training.save_step: unknown key 'save_step'.
     | --training.save_step=3
     | did you mean 'save_steps'?
14 errors, 0 warnings"""
    )


def test_problems_for_machines_hold_the_same() -> None:
    with pytest.raises(ConfigError) as caught:
        load("model:\n  model_nam: x\n")
    found = json.loads(render_problems(caught.value.problems, "json"))["problems"]
    assert {problem["code"] for problem in found} == {"unknown-key", "missing-key", "rule"}
    assert found[0]["place"] == {"source": "c.yaml", "line": 2, "column": 3, "text": "  model_nam: x"}
    github = render_problems(caught.value.problems, "github").splitlines()
    assert (
        "::error file=c.yaml,line=2,col=3::model.model_nam: unknown key 'model_nam'. did you mean 'model_name'?"
        in github
    )


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        (["--training.learning_rate", "5e-4"], "learning_rate", 5e-4),
        (["--training.learning_rate=5e-4"], "learning_rate", 5e-4),
        (["--training.max_steps", "-1"], "max_steps", -1),
        (["--training.compile"], "compile", True),
        (["--no-training.compile"], "compile", False),
        (["--training.run_name", "2024"], "run_name", "2024"),
        (['--training.run_name=""'], "run_name", ""),
        (["--training.trainer_kwargs", "{a: 1e-3}"], "trainer_kwargs", {"a": 1e-3}),
        (
            ["--training.trainer_kwargs.a=1e-3", "--training.trainer_kwargs", "{b: 2}"],
            "trainer_kwargs",
            {"a": 1e-3, "b": 2},
        ),
        (["--training.seed=1", "--training.seed=2"], "seed", 2),
        (["--training.save_steps=3.0"], "save_steps", 3),
        (["--training.eval_strategy", "no"], "eval_strategy", "no"),
    ],
)
def test_a_flag_is_read_by_the_rules_of_the_file(flags: list[str], path: str, value: object) -> None:
    found = getattr(load(minimal_yaml(), *flags).config.training, path)
    assert getattr(found, "value", found) == value


@pytest.mark.parametrize("flag", ["--data.train.datasets[0].sample_count", "--data.train.datasets.0.sample_count"])
def test_a_flag_reaches_into_lists_in_both_spellings(flag: str) -> None:
    loaded = load(minimal_yaml(), flag, "2000")
    assert loaded.config.data.train.datasets[0].sample_count == 2000
    assert loaded.document.origin("data.train.datasets[0].sample_count").kind == "override"


def test_flags_are_taken_from_anywhere_and_the_rest_is_left() -> None:
    overrides, rest = split_overrides(["run", "--a.b", "1", "c.yaml", "--dry-run", "--no-x.y", "--", "--z.z", "2"])
    assert [(o.path, o.text, o.negated) for o in overrides] == [("a.b", "1", False), ("x.y", None, True)]
    assert rest == ["run", "c.yaml", "--dry-run", "--z.z", "2"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.train.datasets[3].split=x", r"there is no .*datasets\[3\].* to put this into.\n.*\n.*has 1 items"),
        ("--training.seed.x=1", "there is no training.seed"),
        ("--no-training.compile=1", "takes no value"),
        ("--training.trainer_kwargs={a", "not valid YAML"),
        ("--training.learning_rate=fast", r"expected a number >= 0, got 'fast'.\n +\| --training.learning_rate=fast"),
    ],
)
def test_a_wrong_flag_is_an_error_that_shows_the_flag(flag: str, message: str) -> None:
    text = minimal_yaml(training="  seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load(text, flag)
    import re

    assert re.search(message, render_problems(caught.value.problems))
    assert "command line: error" in render_problems(caught.value.problems)


@pytest.mark.parametrize(
    ("section", "line", "path", "value"),
    [
        ("peft", "r: 16", "peft.lora_r", 16),
        ("peft", "target_modules: [q_proj]", "peft.lora_target_modules", ["q_proj"]),
        ("peft", "target_modules: all-linear", "peft.lora_target_modules", "all-linear"),
        ("peft", "load_in_4bit: true", "peft.q_lora", True),
        ("peft", "load_in_8bit: true", "peft.q_lora_bits", 8),
        ("peft", "load_in_8bit: false", "peft.q_lora", False),
        ("peft", "bnb_4bit_use_double_quant: true", "peft.use_bnb_nested_quant", True),
        ("peft", "enable_peft: true", "training.use_peft", True),
        ("training", "bf16: true", "training.mixed_precision_dtype", "bf16"),
        ("training", "fp16: true", "training.mixed_precision_dtype", "fp16"),
        ("training", "bf16: false", "training.mixed_precision_dtype", "none"),
        ("training", "mixed_precision_dtype: BF16", "training.mixed_precision_dtype", "bf16"),
        ("fsdp", "sharding_strategy: hybrid-shard", "fsdp.sharding_strategy", "HYBRID_SHARD"),
        ("deepspeed", "zero_stage: 3", "deepspeed.zero_stage", "3"),
        ("deepspeed", "reduce_bucket_size: 5e8", "deepspeed.reduce_bucket_size", 500_000_000),
        ("training", "learning_rate: '5e-5'", "training.learning_rate", 5e-5),
        ("training", "run_name: 1_0", "training.run_name", "1_0"),
    ],
)
def test_every_spelling_of_the_decisions_is_read(section: str, line: str, path: str, value: object) -> None:
    from oumi_kernel.plugins.keys import value_at

    found = value_at(load(minimal_yaml(**{section: f"  {line}\n"})).config, path)
    assert getattr(found, "value", found) == value


def test_two_spellings_that_agree_are_one_and_their_origin_is_known() -> None:
    loaded = load(minimal_yaml(peft="  r: 16\n  lora_r: 16\n"))
    assert loaded.config.peft.lora_r == 16
    alias = load(minimal_yaml(peft="  r: 16\n")).document.origin("peft.lora_r")
    assert (alias.kind, alias.note) == ("alias", "peft.r")


def test_bf16_and_fp16_at_once_are_an_error() -> None:
    assert "conflict" in problems(minimal_yaml(training="  bf16: true\n  fp16: true\n"))


def test_expressions_are_replaced_and_the_environment_is_remembered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "7")
    monkeypatch.delenv("NOWHERE", raising=False)
    loaded = load(
        minimal_yaml(
            training="  max_steps: ${env:STEPS}\n  seed: ${env:NOWHERE:5}\n  output_dir: out/${ref:model.model_name}\n"
            "  run_name: ${model.model_name}\n"
        )
    )
    training = loaded.config.training
    assert (training.max_steps, training.seed, training.output_dir) == (7, 5, "out/./model")
    assert loaded.document.environment["training.max_steps"] == "${env:STEPS}"
    assert training.run_name == "${model.model_name}"
    assert [warning.path for warning in loaded.warnings] == ["training.run_name"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("  run_name: ${env:NOWHERE}\n", "the environment variable NOWHERE is not set"),
        ("  run_name: ${ref:training.seeed}\n", "refers to 'training.seeed', which this configuration does not set"),
        ("  run_name: ${ref:training.output_dir}\n  output_dir: ${ref:training.run_name}\n", "refers to itself"),
    ],
)
def test_an_expression_without_a_value_is_an_error(lines: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    assert message in problems(minimal_yaml(training=lines))


def test_an_empty_section_is_a_section_of_defaults() -> None:
    assert load(minimal_yaml(training="", peft="")).config.training.seed == 42


def test_file_errors_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(minimal_yaml())
    (tmp_path / "noise.yaml").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "large.yaml").write_bytes(b"\x80" * (2 << 20))
    cases = {
        "trian.yaml": "does not exist.*train.yaml",
        ".": "is a folder.*train.yaml",
        "noise.yaml": "is not UTF-8 text",
        "large.yaml": "is larger than 1 MiB",
    }
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def attempt(text: str, *flags: str) -> None:
    try:
        load(text, *flags)
    except ConfigError as error:
        render_problems(error.problems)


LINES = (ROOT / "configs/quickstart/train.yaml").read_text().splitlines()


@QUIET
@given(st.data())
def test_a_mutated_configuration_loads_or_gives_our_own_error(data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        what = data.draw(st.sampled_from(["delete", "double", "text", "cut", "indent", "value"]))
        if what == "delete":
            lines[at] = ""
        elif what == "double":
            lines.insert(at, lines[at])
        elif what == "text":
            lines[at] += data.draw(st.text(max_size=6))
        elif what == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, 20))]
        elif what == "indent":
            lines[at] = " " * data.draw(st.integers(0, 8)) + lines[at].strip()
        else:
            value = data.draw(st.sampled_from(["[]", "{}", "null", "-1", "1e400", "[{a: 1}]", "x", "{a: {b: [1]}}"]))
            lines[at] = lines[at].partition(":")[0] + ": " + value
    attempt("\n".join(lines))


@QUIET
@given(
    st.lists(st.text(max_size=12), max_size=3),
    st.sampled_from(["training.seed", "data.train.datasets[0]", "peft", "x.y"]),
)
def test_random_flags_load_or_give_our_own_error(values: list[str], path: str) -> None:
    try:
        overrides, _ = split_overrides([part for value in values for part in (f"--{path}", value, f"--{value}")])
        load_text("\n".join(LINES), "c.yaml", overrides)
    except ConfigError:
        return


@QUIET
@given(st.binary(max_size=300))
def test_random_bytes_give_our_own_error_or_load(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.mktemp("bytes") / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(file)
