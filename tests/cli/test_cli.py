"""The program as a user meets it: exit codes, what is printed where, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import QUICKSTART, ROOT, minimal_yaml

HEAVY = ("torch", "transformers", "peft", "datasets", "numpy")


def oumi(*arguments: str, folder: Path = ROOT, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "oumi_kernel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def imported(*arguments: str, path: str = "") -> list[str]:
    """Return the heavy modules that a command imported."""
    code = (
        "import sys\nfrom oumi_kernel.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"sys.stderr.write(repr([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    return eval(done.stderr.splitlines()[-1])  # noqa: S307 - our own repr of a list of strings


@pytest.fixture
def config(tmp_path: Path):
    def write(**sections: str) -> str:
        file = tmp_path / "c.yaml"
        file.write_text(minimal_yaml(**sections))
        return str(file)

    return write


COMMANDS = [
    ("--help",),
    ("run", "--help"),
    ("config", "validate", "configs/quickstart/train.yaml"),
    ("config", "show", "configs/quickstart/train.yaml"),
    ("config", "explain", "training.learning_rate"),
    ("config", "schema"),
    ("plugins", "list"),
    ("plugins", "show", "sft"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_that_does_not_train_imports_no_training_library(arguments: tuple[str, ...]) -> None:
    assert imported(*arguments) == []


@pytest.mark.parametrize("arguments", [COMMANDS[0], COMMANDS[2], COMMANDS[6]], ids=" ".join)
def test_neither_do_twenty_plugins_that_import_torch(install, arguments: tuple[str, ...]) -> None:
    for number in range(20):
        points = {"oumi.optimizers": {f"heavy{number}": f"heavy{number}:Heavy"}}
        site = install(
            f"oumi-heavy{number}", "1.0", points, **{f"heavy{number}": "import torch, time\ntime.sleep(5)\n"}
        )
    assert imported(*arguments, path=str(site)) == []
    assert "heavy19" in oumi("plugins", "list", path=str(site)).stdout


def test_help_reads_well_and_a_wrong_command_is_a_usage_error() -> None:
    text = oumi("--help").stdout
    assert all(word in text for word in ("run", "train", "config", "plugins", "env"))
    wrong = oumi("rnu")
    assert wrong.returncode == 2
    assert "rnu" in wrong.stderr
    assert oumi("run").returncode == 2
    assert oumi("--version").stdout.strip().endswith("0.1.0")


def test_validate_reports_everything_and_exits_2(config) -> None:
    file = config(training="  learnig_rate: 1\n  optimizer: adamw_troch\n  optimizer_kwargs: {amsgard: true}\n")
    done = oumi("config", "validate", file)
    assert done.returncode == 2
    assert f"{file}:8:3: error[unknown-key] training.learnig_rate" in done.stdout
    assert f"{file}:9:14: error[unknown-name] training.optimizer: no optimizer is named 'adamw_troch'." in done.stdout
    assert "error[unknown-choice]" not in done.stdout
    second = oumi("config", "validate", config(training="  optimizer: adamw_troch\n"))
    assert "did you mean 'adamw_torch'?" in second.stdout + second.stderr
    third = oumi("config", "validate", config(training="  optimizer_kwargs: {amsgard: true}\n"), "--format", "json")
    (problem,) = [p for p in json.loads(third.stdout)["problems"] if p["severity"] == "error"]
    assert (problem["path"], problem["hint"]) == ("training.optimizer_kwargs.amsgard", "did you mean 'amsgrad'?")


def test_a_wrong_parameter_of_a_plugin_names_its_distribution(install, config) -> None:
    source = (
        "from oumi_kernel import Component, Params, hookimpl\n"
        "class P(Params):\n    beta: float = 0.9\n"
        "class Lion(Component):\n    params_type = P\n    @hookimpl\n"
        "    def oumi_build_optimizer(self, groups):\n        return None\n"
    )
    site = install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=source)
    file = config(training="  optimizer: lion\n  optimizer_kwargs:\n    bta: 1\n")
    done = oumi("config", "validate", file, path=str(site))
    assert done.returncode == 2
    assert "(from oumi-lion 2.3)" in done.stdout + done.stderr
    assert ":10:5: error[unknown-key] training.optimizer_kwargs.bta" in done.stdout + done.stderr


def test_what_no_component_serves_is_valid_but_does_not_run(config) -> None:
    file = config(training="  trainer_type: VERL_GRPO\n")
    assert oumi("config", "validate", file).returncode == 0
    done = oumi("run", file)
    assert done.returncode == 2
    assert "VERL_GRPO needs a trainer named 'verl_grpo'; none is installed." in done.stderr
    nodes = oumi("run", config(data="    use_torchdata: true\n"))
    assert nodes.returncode == 2
    assert "the trainer 'sft' does not serve this key" in nodes.stderr


@pytest.mark.parametrize(
    ("points", "source", "message"),
    [
        ({"lion": "lion_plugin:Lion"}, "raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ({"lion": "lion_plugin:Lion"}, None, "No module named 'lion_plugin'"),
        ({"lion": "lion_plugin:Lion", "Lion": "lion_plugin:Other"}, "", "is offered by 2"),
        (
            {"lion": "lion_plugin:Lion"},
            "from oumi_kernel import Component\nclass Lion(Component):\n    api = (1, 99)\n"
            "    def oumi_build_optimizer(self): ...\n",
            "upgrade oumi-kernel",
        ),
    ],
)
def test_a_broken_plugin_is_exit_7_only_when_it_is_named(install, config, points, source, message: str) -> None:
    modules = {} if source is None else {"lion_plugin": source}
    site = install("oumi-lion", "2.3", {"oumi.optimizers": points}, **modules)
    assert oumi("config", "validate", config(), path=str(site)).returncode == 0
    done = oumi("run", config(training="  optimizer: lion\n"), path=str(site))
    assert done.returncode == 7
    assert message in done.stderr
    assert "oumi-lion 2.3" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plugin_that_imports_torch_when_loaded_is_warned_about(install, config) -> None:
    source = (
        "import torch\nfrom oumi_kernel import Component, hookimpl\nclass Lion(Component):\n    @hookimpl\n"
        "    def oumi_build_optimizer(self, groups):\n        return None\n"
    )
    site = install("oumi-lion", "2.3", {"oumi.optimizers": {"lion": "lion_plugin:Lion"}}, lion_plugin=source)
    done = oumi("config", "validate", config(training="  optimizer: lion\n"), path=str(site))
    assert done.returncode == 0
    assert "oumi-lion 2.3 imports torch when it is loaded" in done.stdout + done.stderr


def test_a_missing_file_is_one_line_with_the_nearest_name() -> None:
    done = oumi("run", "configs/quickstart/trian.yaml")
    assert done.returncode == 2
    assert "did you mean 'configs/quickstart/train.yaml'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_explain_says_type_default_meaning_value_and_origin() -> None:
    text = oumi("config", "explain", "training.learning_rate", "configs/quickstart/train.yaml").stdout
    assert "Highest learning rate of the schedule." in text
    assert "0.005" in text
    assert "5e-05" in text
    assert "configs/quickstart/train.yaml:" in text
    flag = oumi("config", "explain", "training.seed", "configs/quickstart/train.yaml", "--training.seed", "3").stdout
    assert "--training.seed 3" in flag
    wrong = oumi("config", "explain", "training.learnig_rate")
    assert wrong.returncode == 2
    assert "training.learning_rate" in wrong.stderr


def test_show_writes_a_configuration_that_loads_to_the_same(tmp_path: Path) -> None:
    from oumi_kernel.loading import load_config

    shown = oumi("config", "show", "configs/quickstart/train.yaml").stdout
    (tmp_path / "shown.yaml").write_text(shown)
    assert load_config(tmp_path / "shown.yaml").config == load_config(QUICKSTART / "train.yaml").config


def test_the_schema_takes_the_quickstart_and_refuses_a_typo() -> None:
    import yaml

    schema = json.loads(oumi("config", "schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    config = yaml.safe_load((QUICKSTART / "train.yaml").read_text().replace("5e-3", "0.005"))
    assert list(check.iter_errors(config)) == []
    config["training"]["learnig_rate"] = 1
    assert len(list(check.iter_errors(config))) == 1


def test_plugins_show_says_parameters_and_hooks() -> None:
    text = oumi("plugins", "show", "adamw").stdout
    assert "amsgrad" in text
    assert "oumi_build_optimizer" in text
    assert "oumi-kernel 0.1.0" in text
    assert oumi("plugins", "show", "adamww").returncode != 0


def test_plugins_list_for_machines_is_json() -> None:
    rows = json.loads(oumi("plugins", "list", "--format", "json").stdout)
    assert any(row["name"] == "sft" and row["state"] == "ready" for row in rows)


def test_env_says_versions_and_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = oumi("env").stdout
    assert "torch" in text
    assert "hf_secret" not in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_completion_script_for_each_shell(shell: str) -> None:
    done = oumi("completion", shell)
    assert done.returncode == 0
    assert "oumi" in done.stdout


def test_bash_completes_commands_and_config_keys() -> None:
    script = oumi("completion", "bash").stdout
    name = script.split("-F ")[1].split()[0]
    bin_folder = Path(sys.executable).parent
    for words, expected in (
        (["oumi", "ru"], "run"),
        (["oumi", "run", "c.yaml", "--training.lea"], "--training.learning_rate"),
    ):
        line = " ".join(words)
        test = (
            f"export PATH={bin_folder}:$PATH\n{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            f"COMP_LINE='{line}'; COMP_POINT={len(line)}; {name}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        done = subprocess.run(["bash", "-c", test], capture_output=True, text=True, check=True)
        assert expected in done.stdout.replace(" \n", "\n").split("\n"), (done.stdout, done.stderr)


def test_a_word_behind_a_value_is_told_to_belong_into_its_quotes() -> None:
    done = oumi("run", "quickstart", "--training.run_name", "my", "run")
    assert done.returncode == 2
    assert "put it in quotes: --training.run_name 'my run'." in done.stderr
    done = oumi("run", "quickstart", "--model.chat_template_kwargs", "{a:", "true}")
    assert done.returncode == 2
    assert "--model.chat_template_kwargs '{a: true}'" in done.stderr
