"""What trains and what does not, what is checked in the first step and in what was saved, and in which numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from oumi_kernel import CheckpointError, ConfigError, NumericsError
from oumi_plugins.peft._gradients import FirstGradients
from oumi_plugins.peft._saving import Saved, adapter_state, save_adapter, shapes_of
from tests.conftest import Install
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Train

LORA = ("--peft.lora_r=4", "--peft.lora_target_modules=[q_proj, v_proj]", "--training.optimizer=adamw")

KEEP = """
import torch
from pathlib import Path
from oumi_kernel import Component, hookimpl

class Keep(Component):
    '''Writes down a model before and after training.'''
    @hookimpl(wrapper=True)
    def oumi_apply_peft(self, params, model, examples, run):
        model = yield
        self.model = model
        torch.save(model.state_dict(), run.output_dir / "before.pt")
        return model

    @hookimpl
    def oumi_train_end(self, run):
        torch.save(self.model.state_dict(), run.output_dir / "after.pt")
        trained = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
        (run.output_dir / "trained").write_text(" ".join(trained))
"""

CUT = """
from oumi_kernel import Component, hookimpl

class Cut(Component):
    '''Cuts the gradient of one layer off.'''
    @hookimpl(wrapper=True)
    def oumi_apply_peft(self, params, model, examples, run):
        model = yield
        model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").register_forward_hook(
            lambda module, inputs, output: output.detach()
        )
        return model
"""


@pytest.mark.parametrize("flags", [(), ("--peft.lora_modules_to_save=[lm_head, norm]",)])
def test_what_is_frozen_keeps_its_bits_and_what_trains_changes(
    train: Train, install: Install, flags: tuple[str, ...]
) -> None:
    install("oumi-keep", "1.0", {"oumi.plugins": {"keep": "keep:Keep"}}, keep=KEEP)
    run = train(*LORA, *flags, "--training.enable_gradient_checkpointing=true")
    before, after = (torch.load(run.folder / f"{when}.pt") for when in ("before", "after"))
    trained = set((run.folder / "trained").read_text().split())
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == trained
    assert any("lora_B" in name for name in trained)
    record = json.loads((run.folder / "run.json").read_text())["model"]
    assert record["trained"] == sum(before[name].numel() for name in trained)


def test_an_adapter_without_a_gradient_ends_the_run_and_is_named(train: Train, install: Install) -> None:
    install("oumi-cut", "1.0", {"oumi.plugins": {"cut": "cut:Cut"}}, cut=CUT)
    with pytest.raises(NumericsError, match=r"1 of 4 adapters got no gradient.*layers\.0\.self_attn\.q_proj") as caught:
        train(*LORA)
    assert len(caught.value.details["adapters"]) == 1


def test_an_adapter_that_was_never_asked_is_no_error() -> None:
    model = lora(["q_proj", "v_proj"])
    watched = FirstGradients(model, compiled=False)
    model.base_model.model.model.layers[0](torch.randn(1, 3, 64), position_embeddings=rotary(model)).sum().backward()
    moved = watched.check()
    assert {name.split(".layers.")[1].partition(".")[0] for name in moved} == {"0"}
    assert all("lora_B" in name for name in moved)


def test_a_model_that_is_compiled_is_watched_too() -> None:
    model = lora(["q_proj"])
    watched = FirstGradients(model, compiled=True)
    with pytest.raises(NumericsError, match="2 of 2 adapters got no gradient"):
        watched.check()


def test_steps_in_the_backward_pass_are_no_missing_gradients(train: Train) -> None:
    """Each gradient is freed as soon as its weight was stepped."""
    flags = (*LORA, "--training.max_grad_norm=null")
    run = train(*flags, "--training.trainer_kwargs.optimizer_in_backward=true", name="at once")
    assert run.figures("loss") == pytest.approx(train(*flags, name="after").figures("loss"), rel=1e-6)


def lora(modules: list[str], **fields: Any) -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=modules, **fields)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config)


def rotary(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.base_model.model.model.rotary_emb(torch.randn(1, 3, 64), torch.arange(3)[None])


@pytest.mark.parametrize("damage", ["zero", "nan", "shape", "missing"])
def test_an_adapter_that_is_not_whole_is_never_called_saved(tmp_path: Path, damage: str) -> None:
    model = lora(["q_proj"], init_lora_weights=False)
    state = dict(model.state_dict())
    shapes = shapes_of(adapter_state(model, state))
    name = next(name for name in state if "lora_B" in name)
    moved = frozenset(n for n in state if "lora_B" in n)
    if damage == "zero":
        state[name] = torch.zeros_like(state[name])
    elif damage == "nan":
        state[name] = torch.full_like(state[name], torch.nan)
    elif damage == "shape":
        state[name] = state[name][:3]
    else:
        del state[name]
    message = {"zero": "are all zero", "nan": "is not finite", "shape": "has the shape", "missing": "lacks 1 weights"}
    saved = Saved(model=model, weights=state, moved=moved, shapes=shapes)
    with pytest.raises(CheckpointError, match=message[damage]):
        save_adapter(saved, AutoTokenizer.from_pretrained(TINY), tmp_path)


def test_a_step_that_learned_nothing_may_be_saved(train: Train) -> None:
    """With a warm-up the first step has the rate zero: the second matrices are zero still, and that is no fault."""
    run = train(*LORA, "--training.warmup_steps=2", "--training.lr_scheduler_type=linear", "--training.max_steps=1")
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert not any(weight.any() for name, weight in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_adapters_of_short_weights_train_in_float32(train: Train, dtype: str) -> None:
    run = train(*LORA, f"--model.torch_dtype_str={dtype}", "--training.save_steps=3")
    wide = torch.float64 if dtype == "float64" else torch.float32
    state = load_file(run.folder / "checkpoint-3/optimizer.safetensors")
    assert {tensor.dtype for name, tensor in state.items() if not name.endswith(":step")} == {wide}
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {wide}
    assert all(tensor.any() for tensor in weights.values())
    losses = run.figures("loss")
    assert losses[0] == pytest.approx(train(*LORA, name="wide").figures("loss")[0], rel=0.01)


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """Return the folder of a mixture of experts, which are one tensor for all."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = AutoConfig.for_model(
        "qwen3_moe",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    return tmp_path / "experts"


def test_experts_are_adapted_by_their_parameters(train: Train, experts: Path) -> None:
    run = train(
        f"--model.model_name={experts}",
        "--peft.lora_target_modules=[q_proj]",
        "--peft.lora_target_parameters=[mlp.experts.gate_up_proj, mlp.experts.down_proj]",
        "--training.optimizer=adamw",
    )
    log = (run.folder / "logs/rank_0.log").read_text()
    assert "lora_target_parameters: mlp.experts.down_proj 2, mlp.experts.gate_up_proj 2" in log
    weights = load_file(run.folder / "adapter_model.safetensors")
    assert sum("experts" in name for name in weights) == 2 * 2 * 2
    assert all(weight.any() for weight in weights.values())
    assert not torch.equal(logits(opened(run.folder)), logits(AutoModelForCausalLM.from_pretrained(experts)))


def test_all_linear_layers_of_a_mixture_are_those_of_its_experts_too(train: Train, experts: Path) -> None:
    """The library names them itself: as parameters, with twice the rank where two matrices of an expert are one."""
    model = f"--model.model_name={experts}"
    flags = (model, "--peft.lora_r=2", "--peft.lora_target_modules=all-linear", "--training.optimizer=adamw")
    run = train(*flags)
    found = json.loads((run.folder / "run.json").read_text())["model"]["peft"]
    assert found["peft.lora_target_modules"] == {"all-linear": 8}
    assert found["peft.lora_target_parameters"] == {"down_proj": 2, "gate.weight": 2, "gate_up_proj": 2}
    torch.manual_seed(42)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules="all-linear")
    plain = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(experts), config)
    shapes = shapes_of(peft.get_peft_model_state_dict(plain, save_embedding_layers=False))
    assert shapes_of(load_file(run.folder / "adapter_model.safetensors")) == shapes
    on = train(model, f"--model.adapter_model={run.folder}", "--training.optimizer=adamw", name="on")
    assert shapes_of(load_file(on.folder / "adapter_model.safetensors")) == shapes


ON_EXPERTS = "--peft.lora_target_parameters=[experts.down_proj]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--peft.lora_target_modules=[q_proj, gate_proj]",),
            r"set lora_target_parameters: \[mlp.experts.gate_up_proj,",
        ),
        (("--peft.lora_target_modules=all-linear", "--peft.lora_init_weights=pissa"), "'pissa' is a start for modules"),
        ((ON_EXPERTS, "--peft.lora_init_weights=eva"), "'eva' is a start for"),
        (
            (ON_EXPERTS, "--peft.lora_dropout=0.1"),
            r"peft\.lora_dropout: peft refuses",
        ),
        (
            (ON_EXPERTS, "--peft.peft_kwargs.use_dora=true"),
            r"peft\.peft_kwargs\.use_dora: peft refuses",
        ),
    ],
)
def test_what_experts_cannot_have_is_refused_with_what_they_can(
    train: Train, experts: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(f"--model.model_name={experts}", *flags)
