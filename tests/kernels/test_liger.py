"""Liger on the model that is trained: what it patches, that it computes the same, and what is refused."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from tests.conftest import QUICKSTART, ROOT, minimal_yaml
from tests.trainers.conftest import Train, train  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
FEW = ("llama", "qwen3", "gemma2", "gpt_oss")
OTHERS = ("mistral", "ministral", "qwen2", "gemma", "gemma3", "phi3", "olmo2", "olmo3", "smollm3", "granite", "exaone4")
MORE = (*OTHERS, "glm4", "hunyuan", "mixtral")
ROPE, NORM, SWIGLU, GEGLU = "_triton_rope", "_rms_norm_forward_kernel", "_swiglu_forward_kernel", "_geglu_tanh_"
RUNS = {"gemma": {ROPE, NORM, GEGLU}, "glm4": {NORM, SWIGLU}, "mixtral": {ROPE, NORM}, "gpt_oss": {ROPE, NORM}}
RUNS |= dict.fromkeys(("gemma2", "gemma3"), RUNS["gemma"])
"""Family -> the kernels that run, where they are not all but GEGLU's."""


def interpreted(folder: Path, *families: str) -> dict[str, Any]:
    """Return what `interpreted.py` finds in a process of its own."""
    out = folder / "found.json"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'plugins'}"}
    command = [sys.executable, "-m", "tests.kernels.interpreted", str(out), *families]
    done = subprocess.run(command, check=False, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def check(family: str, found: dict[str, Any]) -> None:
    """Fail where a model with kernels is not the model without, or another model noticed."""
    for kernel in RUNS.get(family, {ROPE, NORM, SWIGLU}):
        assert [name for name in found["kernels"] if name.startswith(kernel)], (family, kernel)
    assert found["loss_difference"] < 1e-5, family
    assert found["gradient_difference"] < 1e-4, family
    assert found["gradients"] == 0, family
    assert found["is_flat"], family
    assert found["has_head"] is (family not in ("gemma2", "granite")), family
    assert found["changed_in_transformers"] == [], family
    assert found["other_model_is_equal"], family


def test_losses_and_gradients_are_those_of_the_model_without_kernels_and_no_other_model_changes(tmp_path: Path) -> None:
    found = interpreted(tmp_path, *FEW)
    assert found.keys() == set(FEW)
    for family in FEW:
        check(family, found[family])


@pytest.mark.slow
@pytest.mark.exhaustive
def test_they_are_for_more_architectures_too(tmp_path: Path) -> None:
    found = interpreted(tmp_path, *MORE)
    for family in MORE:
        check(family, found[family])


@pytest.fixture
def run() -> Run:
    return Run(config=load_text(minimal_yaml(model="  enable_liger_kernel: true\n"), "test.yaml").config, folder=Path())


def skeleton(family: str, **settings: Any) -> Any:
    """Return a model without weights, which takes kernels and runs none."""
    import torch
    import transformers

    from tests.trainers.test_forward import SHAPE

    config = getattr(transformers, f"{family}Config")(**(SHAPE | settings))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def put(model: Any, run: Run, **parameters: Any) -> list[str]:
    """Put kernels in, and return the dotted names of the modules that have one."""
    from oumi_plugins.kernels._liger import put_into
    from oumi_plugins.kernels.liger import LigerParams

    put_into(model, LigerParams(**parameters), run)
    return sorted(name for name, module in model.named_modules() if "forward" in vars(module))


def test_the_log_says_which_parts_took_a_kernel(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    patched = put(skeleton("Llama"), run)
    layer = ["input_layernorm", "mlp", "post_attention_layernorm", "self_attn"]
    assert patched == [*(f"model.layers.{index}.{part}" for index in range(2) for part in layer), "model.norm"]
    assert "computes rope in 2 modules, rms_norm in 5 modules, swiglu in 2 modules" in caplog.text


@pytest.mark.parametrize(("part", "modules"), [("rope", 2), ("rms_norm", 5), ("swiglu", 2)])
def test_a_part_is_left_out_where_it_is_switched_off(run: Run, part: str, modules: int) -> None:
    assert len(put(skeleton("Llama"), run, **{part: False})) == 9 - modules


def test_a_copy_of_the_model_computes_with_its_own_weights(run: Run) -> None:
    import copy

    model = skeleton("Llama")
    put(model, run)
    twin = copy.deepcopy(model)
    for module in twin.modules():
        assert "forward" not in vars(module) or module.forward.__self__ is module


def test_parameters_are_those_of_liger() -> None:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    from oumi_plugins.kernels.liger import LigerParams

    known: set[str] = set()
    for function in MODEL_TYPE_TO_APPLY_LIGER_FN.values():
        known |= {name for name, p in inspect.signature(function).parameters.items() if isinstance(p.default, bool)}
    assert known == set(LigerParams.__struct_fields__)


@pytest.mark.parametrize(
    ("family", "settings", "parameters", "message"),
    [
        ("GPT2", {}, {}, "model.enable_liger_kernel: liger-kernel .* has no kernels for models of type 'gpt2'.*llama"),
        (
            "Qwen3",
            {},
            {"geglu": True},
            "kernel_kwargs.geglu: Liger has no geglu for .* type 'qwen3'. It has rope",
        ),
        ("Llama", {"hidden_act": "gelu"}, {"swiglu": True}, "kernel_kwargs.swiglu: .* its activation is gelu"),
        ("Glm4", {}, {"rope": True}, "kernel_kwargs.rope: .*not available for Glm4"),
        ("GptOss", {}, {"swiglu": True}, "kernel_kwargs.swiglu: .*Liger patches none of its modules"),
        (
            "Llama",
            {},
            {"rope": False, "rms_norm": False, "swiglu": False},
            "model.enable_liger_kernel: no module of LlamaForCausalLM took a kernel",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_by_name(
    run: Run, family: str, settings: dict[str, Any], parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        put(skeleton(family, **settings), run, **parameters)


def test_a_part_that_does_not_fit_and_was_not_asked_for_is_left_as_it_is(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert not [name for name in put(skeleton("Llama", hidden_act="gelu"), run) if name.endswith("mlp")]
    assert "swiglu is left as it is: its activation is gelu" in caplog.text


def test_an_unknown_type_is_refused_before_data_is_read(tmp_path: Path) -> None:
    import transformers

    from oumi_plugins.kernels._liger import check_model_name

    transformers.GPT2Config().save_pretrained(tmp_path / "model")
    text = minimal_yaml(model="  enable_liger_kernel: true\n")
    run = Run(config=load_text(text, "test.yaml").config, folder=tmp_path)
    with pytest.raises(ConfigError, match="no kernels for models of type 'gpt2'"):
        check_model_name(run)


@pytest.mark.parametrize("name", ["cross_entropy", "fused_linear_cross_entropy"])
def test_a_second_computation_of_the_loss_is_refused(name: str) -> None:
    from oumi_kernel.plugins import resolve, scan

    model = f"  enable_liger_kernel: true\n  kernel_kwargs: {{{name}: true}}\n"
    found = resolve(load_text(minimal_yaml(model=model), "test.yaml"), scan())
    (problem,) = found.problems
    assert problem.path == f"model.kernel_kwargs.{name}"
    assert "the trainer computes the loss itself" in problem.message


@pytest.fixture
def configured(tmp_path: Path) -> list[str]:
    """Return the arguments of a small run with Liger on."""
    config = tmp_path / "train.yaml"
    data = f"dataset_name: text_sft, dataset_path: {QUICKSTART}/data/train.jsonl, sample_count: 2"
    config.write_text(
        f"model: {{model_name: {QUICKSTART}/model, enable_liger_kernel: true}}\n"
        f"data: {{train: {{datasets: [{{{data}}}]}}}}\n"
        f"training: {{output_dir: {tmp_path}/run, max_steps: 1, per_device_train_batch_size: 1, save_steps: 0, "
        "enable_tensorboard: false, logging_steps: 1, optimizer: sgd}\n"
    )
    return [sys.executable, "-m", "oumi_kernel", "run", str(config)]


def started(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run(command, check=False, env=variables, cwd=ROOT, capture_output=True, text=True)


def test_a_machine_for_which_triton_compiles_nothing_is_refused(configured: list[str]) -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    done = started(configured, TRITON_INTERPRET="0")
    assert done.returncode == 2
    assert "error[not-served] model.enable_liger_kernel: Liger's kernels need a GPU" in done.stderr
    assert "Switch it off on this machine" in done.stderr


@pytest.mark.slow
def test_a_run_through_the_interpreter_learns_what_one_without_kernels_does(
    configured: list[str], tmp_path: Path
) -> None:
    off = started([*configured, "--model.enable_liger_kernel=false", f"--training.output_dir={tmp_path}/plain"])
    assert off.returncode == 0, off.stderr
    refused = started(configured, TRITON_INTERPRET="1")
    assert refused.returncode == 2
    assert "model.kernel_kwargs.rms_norm: Triton's interpreter cannot run this kernel" in refused.stderr
    some = "--model.kernel_kwargs={rms_norm: false, swiglu: false}"
    rehearsed = started([*configured, some, "--dry-run"], TRITON_INTERPRET="1")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "not known" not in rehearsed.stdout  # what activations take was counted
    on = started([*configured, some], TRITON_INTERPRET="1")
    assert on.returncode == 0, on.stderr
    assert "computes rope in 2 modules" in on.stderr
    with_kernels, without = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("run", "plain"))
    for figure in ("loss", "grad_norm"):
        assert with_kernels[figure] == pytest.approx(without[figure], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2", "Mixtral"])
def test_on_a_gpu_losses_and_gradients_are_those_of_the_model_without_kernels(run: Run, family: str) -> None:
    from contextlib import nullcontext

    import torch
    import transformers

    from oumi_plugins.trainers._forward import Forward
    from tests.trainers.test_forward import SHAPE, alone, gradients, padded_batch, sequences

    settings = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "Mixtral" else {}
    config = getattr(transformers, f"{family}Config")(**(SHAPE | settings))

    def build() -> Any:
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").cuda().train()

    plain, rows = build(), [row.cuda() for row in sequences()]
    expected = torch.cat(alone(plain, rows)).sum()
    expected.backward()
    wanted = gradients(plain)
    model = build()
    put(model, run)
    forward = Forward(model, ignore=-100)
    forward.choose(None, nullcontext)
    batch, _ = forward.supervise(padded_batch([row.cpu() for row in rows]))
    batch = {key: value.cuda() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    loss = forward.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for key, gradient in gradients(model).items():
        scale = float(wanted[key].abs().max()) + 1e-6
        torch.testing.assert_close(gradient / scale, wanted[key] / scale, rtol=1e-2, atol=1e-2, msg=key)


@pytest.mark.gpu
def test_a_run_on_a_gpu_learns_what_one_without_kernels_does(train: Train) -> None:  # noqa: F811
    plain, fused = train(name="plain"), train("--model.enable_liger_kernel=true", name="fused")
    assert fused.figures("loss") == pytest.approx(plain.figures("loss"), rel=1e-3)
