"""`config explain`, `config schema`, completion and usage, against the loader and the functions that they describe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from oumi_kernel.cli.application import application
from oumi_kernel.cli.commands import COMMANDS
from oumi_kernel.cli.complete import candidates
from oumi_kernel.cli.json_schema import build_schema
from oumi_kernel.cli.keys import NAMING_KEYS, all_keys, pattern_of
from oumi_kernel.errors import ConfigError
from oumi_kernel.loading import load_text
from oumi_kernel.loading.yaml_reader import read_yaml
from oumi_kernel.plugins import resolve, scan
from tests.cli.test_cli import oumi
from tests.conftest import ROOT, minimal_yaml

SECTION = "from oumi_kernel import Params\nclass Shop(Params):\n    price: int = 3\n    '''What it costs.'''\n"


@pytest.fixture
def config(tmp_path: Path):
    def write(**sections: str) -> str:
        file = tmp_path / "c.yaml"
        file.write_text(minimal_yaml(**sections))
        return str(file)

    return write


@pytest.fixture(scope="module")
def schema() -> Any:
    document = json.loads(json.dumps(build_schema(scan())))
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


# --- explain ---------------------------------------------------------------------------------------------------------


def test_explain_takes_another_spelling_and_says_where_it_was_written(config) -> None:
    text = oumi("config", "explain", "peft.r", config(peft="  r: 32\n")).stdout
    assert text.startswith("peft.lora_r\n")
    assert "'peft.r' is another spelling of it." in text
    assert "value    32\n" in text
    assert "c.yaml:8:6  r: 32, written as peft.r" in text


def test_explain_without_a_file_still_shows_flags() -> None:
    text = oumi("config", "explain", "--training.bf16", "true", "training.mixed_precision_dtype").stdout
    assert "value    bf16\n" in text
    assert "command line  --training.bf16 true" in text


def test_explain_lists_the_keys_of_a_section_with_types_and_values(config) -> None:
    text = oumi("config", "explain", "peft", config(peft="  lora_alpha: 64\n")).stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.strip()}
    assert rows["lora_dropout"].endswith("a number >= 0 and <= 1; default 0.0")
    assert "; 64 (" in rows["lora_alpha"]


def test_explain_names_the_component_whose_parameter_is_meant(config) -> None:
    text = oumi("config", "explain", "training.optimizer_kwargs.amsgrad", config()).stdout
    assert "Parameter of adamw_torch, from oumi-kernel" in text
    sgd = oumi("config", "explain", "training.optimizer_kwargs", "--training.optimizer", "sgd").stdout
    assert "of sgd, from oumi-kernel" in sgd
    assert "nesterov" in sgd


def test_explain_and_show_name_the_variable_and_never_tell_its_value(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "s3cret")
    file = config(data='        dataset_path: "${env:PLACE}"\n', training='  run_name: "x-${env:PLACE}"\n')
    asked = ["data.train.datasets", "data.train.datasets[0].dataset_path", "training.run_name", "training"]
    shown = [oumi("config", "explain", key, file) for key in asked]
    shown += [oumi("config", "show", file), oumi("config", "show", file, "--format", "json")]
    assert all("${env:PLACE}" in done.stdout for done in shown)
    assert all("s3cret" not in done.stdout + done.stderr for done in shown)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("training.learnig_rate", "did you mean 'training.learning_rate'?"),
        ("lora_r", "did you mean 'peft.lora_r'?"),
        ("zzz", "The sections are model, data, training, peft, fsdp, deepspeed"),
        ("model.model_kwargs.rope", "model.model_kwargs holds keys of your own"),
    ],
)
def test_explain_of_an_unknown_key_is_exit_2_with_a_way_out(key: str, hint: str) -> None:
    done = oumi("config", "explain", key)
    assert done.returncode == 2
    assert hint in done.stderr


def test_explain_says_that_the_configuration_has_problems_and_explains_all_the_same(config) -> None:
    done = oumi("config", "explain", "training.seed", config(training="  sed: 1\n"))
    assert done.returncode == 0
    assert "default  42" in done.stdout
    assert "has problems" in done.stderr


def test_a_section_of_a_plugin_is_explained_shown_and_in_the_schema(install, config) -> None:
    site = str(install("oumi-shop", "1.5", {"oumi.sections": {"shop": "shop_plugin:Shop"}}, shop_plugin=SECTION))
    file = config(shop="  price: 7\n")
    text = oumi("config", "explain", "shop.price", file, path=site).stdout
    assert "What it costs." in text
    assert "from oumi-shop 1.5" in text
    assert "value    7\n" in text
    assert "shop:\n  price: 7\n" in oumi("config", "show", file, path=site).stdout
    found = json.loads(oumi("config", "schema", path=site).stdout)
    check = jsonschema.Draft202012Validator(found)
    tree = {"model": {"model_name": "x"}, "shop": {"price": 7}}
    assert list(check.iter_errors(tree)) == []
    assert list(check.iter_errors(tree | {"shop": {"prize": 7}})) != []


def test_a_broken_section_harms_no_other_key(install) -> None:
    site = str(install("oumi-shop", "1.5", {"oumi.sections": {"shop": "shop_plugin:Shop"}}, shop_plugin="1 / 0\n"))
    assert oumi("config", "explain", "training.seed", path=site).returncode == 0
    assert oumi("config", "schema", path=site).returncode == 0
    asked = oumi("config", "explain", "shop", path=site)
    assert asked.returncode == 7
    assert "oumi-shop 1.5" in asked.stderr


# --- schema ----------------------------------------------------------------------------------------------------------

BOTH_ACCEPT = [
    "training: {bf16: true}",
    "training:",
    "training: {gkd: }",
    "training: {seed: '${env:SEED:3}', output_dir: '${ref:model.model_name}/x'}",
    "training: {learning_rate: 5e-5, max_steps: 3.0, num_train_epochs: 2.5}",
    "training: {mixed_precision_dtype: BF16, eval_strategy: no}",
    "training: {dataloader_num_workers: auto}",
    "training: {trainer_kwargs: {max_seq_length: 8}}",
    "training: {optimizer: some-lion, optimizer_kwargs: {anything: 1}}",
    "training: {optimizer_kwargs: {amsgrad: true}}",
    "peft: {r: 8, target_modules: all-linear, bnb_4bit_use_double_quant: true}",
    "peft: {load_in_4bit: true, lora_task_type: CAUSAL_LM, peft_save_mode: MERGED}",
    "peft: {enable_peft: false}",
    "fsdp: {sharding_strategy: full-shard}",
    "deepspeed: {zero_stage: ZERO_3}",
    "deepspeed: {zero_stage: 3}",
    "model: {model_name: x, torch_dtype_str: BFloat16}",
]
BOTH_REFUSE = [
    "training: {fp16: maybe}",
    "training: {learnig_rate: 1}",
    "training: {learning_rate: -1}",
    "training: {max_steps: 3.5}",
    "training: {dataloader_num_workers: many}",
    "training: {trainer_kwargs: {max_lenght: 8}}",
    "training: {optimizer_kwargs: {amsgard: true}}",
    "training: {compile: 'yes'}",
    "peft: {r: 0}",
    "deepspeed: {zero_stage: 7}",
    "model: {model_name: x, torch_dtype_str: int3}",
    "model: {}",
    "trainer: {}",
]


def loads(text: str) -> bool:
    try:
        resolution = resolve(load_text(text, "c.yaml"), scan())
    except ConfigError:
        return False
    return all("kwargs" not in problem.path for problem in resolution.problems)


@pytest.mark.parametrize(("line", "accepted"), [(x, True) for x in BOTH_ACCEPT] + [(x, False) for x in BOTH_REFUSE])
def test_the_schema_and_the_loader_agree(schema: Any, line: str, accepted: bool) -> None:
    section = line.partition(":")[0]
    base = {"model": "model: {model_name: x/y}\n", "data": "data: {train: {datasets: [{dataset_name: a/b}]}}\n"}
    text = "".join(kept for name, kept in base.items() if name != section) + line + "\n"
    assert loads(text) is accepted
    assert schema.is_valid(read_yaml(text, "c.yaml").value) is accepted


def test_the_schema_offers_installed_names_and_carries_every_field_s_text(schema: Any) -> None:
    definitions = schema.schema["$defs"]
    names = definitions["TrainingParams"]["properties"]["optimizer"]["anyOf"][0]["enum"]
    assert {"adamw", "sgd"} <= set(names)
    assert "default" not in names
    for key in all_keys().values():
        if key.doc and "." in key.path:
            struct = all_keys()[pattern_of(key.path).rpartition(".")[0].removesuffix("[]")].struct
            assert struct is not None
            assert definitions[struct.__name__]["properties"][key.name]["description"] == key.doc


def test_the_schema_is_the_same_for_the_same_installation() -> None:
    assert oumi("config", "schema").stdout == oumi("config", "schema").stdout


# --- usage and completion --------------------------------------------------------------------------------------------


def test_the_table_of_commands_names_the_options_of_every_function() -> None:
    app = application()
    for command in COMMANDS:
        sub = app
        for word in command.words:
            sub = sub[word]
        arguments = sub.assemble_argument_collection()
        parsed = {
            name
            for argument in arguments
            if argument.parse
            for name in argument.names
            if name.startswith("-") and name not in argument.negatives
        }
        assert parsed == set(command.options), command.words


def test_keys_that_name_components_exist_and_are_open_text() -> None:
    for naming in NAMING_KEYS:
        assert naming.path in all_keys()
        assert not naming.kwargs or isinstance(all_keys()[naming.kwargs].default, dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "a", "b"), "'b'"),
        (("run", "a", "--nope"), "--nope"),
        (("env", "--training.seed", "3"), "takes no configuration keys: remove --training.seed 3"),
        (("config", "validate"), "needs at least one configuration"),
        (("plugins", "list", "--family", "metric"), "Families: models, datasets"),
        (("plugins", "list", "--format", "xml"), "xml"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    done = oumi(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_overrides_stand_before_or_after_the_path(config) -> None:
    file = config()
    for words in (["--training.seed", "7", file], [file, "--training.seed=7"]):
        assert "\n  seed: 7\n" in oumi("config", "show", *words).stdout


def test_validate_annotates_for_github_and_checks_every_file(config) -> None:
    file = config(training="  seed: x\n")
    done = oumi("config", "validate", "quickstart", file, "--format", "github")
    assert done.returncode == 2
    assert f"::error file={file},line=8,col=9::training.seed: " in done.stdout
    plain = oumi("config", "validate", "quickstart", file).stdout
    assert plain.startswith("quickstart: valid\n")


def test_a_local_file_serves_as_a_metric_for_validation(config, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def bleu(predictions, labels, order: int = 4) -> float:\n    return 0.0\n")
    file = config(training="  metrics_function: bleu\n  metrics_kwargs: {order: 2}\n")
    assert oumi("config", "validate", file).returncode == 2
    assert oumi("config", "validate", file, "--plugin", f"{tmp_path}/mine.py:bleu").returncode == 0
    text = oumi("config", "explain", "training.metrics_kwargs.order", file, f"--plugin={tmp_path}/mine.py:bleu").stdout
    assert "a whole number" in text
    assert "value    2\n" in text


def test_a_reader_that_stops_early_sees_no_traceback() -> None:
    line = f"{sys.executable} -m oumi_kernel config schema | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_show_lists_every_family_that_has_the_name() -> None:
    text = oumi("plugins", "show", "default").stdout
    assert all(f"{noun} default\n" in text for noun in ("collator", "dataset", "model loader", "strategy"))
    one = oumi("plugins", "show", "collators:default").stdout
    assert one.startswith("collator default\n")
    assert "strategy default" not in one


def test_show_says_what_goes_with_a_strategy_and_what_does_not() -> None:
    trains, _, refused = oumi("plugins", "show", "fsdp").stdout.partition("  Is refused with:\n")
    assert "\n    adapter: none (every weight); LoRA; DoRA;" in trains.partition("  Trains with:")[2]
    assert "    quantisation: 8 bits: FSDP cannot divide 8-bit weights" in refused
    assert "    optimizer: adafactor; " in refused
    of_zero = oumi("plugins", "show", "deepspeed").stdout
    assert "    adapter: prompt tuning (ZERO_3): " in of_zero
    assert "prompt tuning (ZERO_0, ZERO_1, ZERO_2)" in of_zero.partition("  Is refused with:")[0]


@pytest.mark.parametrize(
    ("before", "current", "expected"),
    [
        ([], "co", ["completion", "config"]),
        (["config"], "", ["explain", "schema", "show", "validate", "--help"]),
        (["run", "c.yaml"], "--training.gr", ["--training.gradient_accumulation_steps", "--training.grpo."]),
        (["run", "c.yaml"], "--data.train.datasets[0].sp", ["--data.train.datasets[0].split"]),
        (["run", "c.yaml"], "--data.train.da", ["--data.train.datasets[0]."]),
        (["run", "c.yaml"], "--no-model.trust", ["--no-model.trust_remote_code"]),
        (["run", "c.yaml", "--training.optimizer"], "sg", ["sgd"]),
        (["run", "c.yaml", "--training.optimizer", "="], "sg", ["sgd"]),
        (["run", "c.yaml"], "--training.optimizer=sg", ["--training.optimizer=sgd"]),
        (["run", "--model.trust_remote_code"], "", ["true", "false"]),
        (["run", "--training.eval_strategy"], "st", ["steps"]),
        (["plugins", "list", "--format"], "", ["text", "json"]),
        (["plugins", "show"], "adafa", ["adafactor"]),
        (["config", "explain"], "training.lea", ["training.learning_rate"]),
        (["completion"], "", ["bash", "zsh", "fish"]),
        (["run"], "c", []),
        (["env"], "--training.lea", []),
    ],
)
def test_completion_offers_what_may_stand_there(before: list[str], current: str, expected: list[str]) -> None:
    found = candidates(before, current)
    assert [word for word in found if word in expected] == expected
    assert all(word.startswith(current.replace("=", "")) or "=" in current for word in found)
    if expected == [] or len(expected) > 2:
        assert found == expected


def test_an_interrupt_is_exit_130_without_a_traceback(config, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "def bleu(predictions, labels): ...\n"
    )
    file = config(training="  metrics_function: bleu\n")
    done = oumi("config", "validate", file, "--plugin", f"{tmp_path}/slow.py:bleu")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback_and_says_so(install, config) -> None:
    source = (
        "from oumi_kernel import Component\nclass Odd(Component):\n    requires = {3: 'x'}\n"
        "    def oumi_build_optimizer(self): ...\n"
    )
    site = str(install("oumi-odd", "1.0", {"oumi.optimizers": {"odd": "odd_plugin:Odd"}}, odd_plugin=source))
    done = oumi("config", "validate", config(training="  optimizer: odd\n"), path=site)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("Please report the lines above.\n")
