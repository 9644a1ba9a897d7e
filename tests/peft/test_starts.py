"""How an adapter begins: as the library begins it, by the seed alone, and saved so that it opens again."""

from __future__ import annotations

import json
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from oumi_kernel import CheckpointError, ConfigError
from oumi_kernel.merging import merge
from tests.conftest import Install
from tests.peft.conftest import TINY, logits, opened
from tests.trainers.conftest import Finished, Train

LORA = ("--peft.lora_r=4", "--peft.lora_target_modules=[q_proj, v_proj]", "--training.optimizer=adamw")
STILL = ("--training.learning_rate=0", "--training.max_steps=1", "--training.weight_decay=0")


def adapter(run: Finished) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter_model.safetensors")


def begun(start: Any) -> Any:
    torch.manual_seed(42)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start
    )
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config)


@pytest.mark.parametrize(("name", "start"), [("DEFAULT", True), ("random", False), ("GAUSSIAN", "gaussian")])
def test_a_start_is_that_of_the_library(train: Train, name: str, start: Any) -> None:
    found = adapter(train(*LORA, *STILL, f"--peft.lora_init_weights={name}"))
    expected = peft.get_peft_model_state_dict(begun(start), save_embedding_layers=False)
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


@pytest.mark.parametrize(
    ("name", "start", "extra"),
    [
        ("PISA", "pissa", ()),
        ("pissa_niter_4", "pissa_niter_4", ()),
        ("OLORA", "olora", ()),
        ("pissa", "pissa", ("--peft.peft_kwargs.use_rslora=true",)),
        ("pissa", "pissa", ("--peft.peft_kwargs.use_dora=true", "--peft.lora_modules_to_save=[lm_head]")),
        ("olora", "olora", ("--peft.peft_kwargs.rank_pattern={q_proj: 2}",)),
    ],
)
def test_a_start_taken_out_of_the_model_is_saved_as_an_ordinary_adapter(
    train: Train, name: str, start: str, extra: tuple[str, ...]
) -> None:
    still = train(*LORA, *STILL, *extra, f"--peft.lora_init_weights={name}", name="still")
    plain = logits(AutoModelForCausalLM.from_pretrained(TINY))
    torch.testing.assert_close(logits(opened(still.folder)), plain, atol=1e-5, rtol=1e-4)
    config = json.loads((still.folder / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    if not extra:
        directions = peft.get_peft_model_state_dict(begun(start), save_embedding_layers=False)
        for key, tensor in adapter(still).items():
            first = tensor[:4] if "lora_A" in key else tensor[:, :4]
            torch.testing.assert_close(first, directions[key], rtol=1e-4, atol=1e-5)


def test_a_trained_one_opens_with_the_logits_that_it_was_trained_to(train: Train, tmp_path) -> None:
    """The model in training is rebuilt here from what a checkpoint holds: the residual, and the first half of it."""
    run = train(*LORA, "--peft.lora_init_weights=pissa", "--training.learning_rate=0.05")
    model = begun("pissa")
    halves = {
        name: (tensor[:4] if "lora_A" in name else tensor[:, :4]).contiguous() for name, tensor in adapter(run).items()
    }
    peft.set_peft_model_state_dict(model, halves)
    torch.testing.assert_close(logits(opened(run.folder)), logits(model), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(logits(model), logits(AutoModelForCausalLM.from_pretrained(TINY)), atol=1e-3)


@pytest.mark.parametrize("name", ["pissa", "olora", "eva", "pissa_niter_2"])
def test_a_run_with_a_start_goes_on_with_the_same_bits(train: Train, name: str) -> None:
    flags = (*LORA, f"--peft.lora_init_weights={name}", "--training.save_steps=2", "--training.max_steps=4")
    straight = train(*flags, name="straight")
    resume = f"--training.resume_from_checkpoint={straight.folder}/checkpoint-2"
    resumed = train(*flags, resume, name="resumed")
    for file in ("adapter_model", "optimizer"):
        expected = load_file(straight.folder / f"checkpoint-4/{file}.safetensors")
        found = load_file(resumed.folder / f"checkpoint-4/{file}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())


def test_a_checkpoint_of_another_start_is_refused(train: Train) -> None:
    flags = (*LORA, "--peft.lora_init_weights=pissa", "--training.save_steps=2", "--training.max_steps=4")
    folder = train(*flags).folder / "checkpoint-2"
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    weights[name][4:] *= -1  # as another library may find the same direction
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "manifest.json").unlink()
    from oumi_plugins.trainers._manifest import seal

    seal(folder)
    with pytest.raises(CheckpointError, match="began from other directions of the model"):
        train(*flags, f"--training.resume_from_checkpoint={folder}", name="again")


def test_eva_begins_where_the_data_varies_most(train: Train) -> None:
    run = train(*LORA, *STILL, "--peft.lora_init_weights=eva", "--peft.peft_kwargs.eva_config={rho: 1.0}")
    plain = train(*LORA, *STILL, name="plain")
    found, other = adapter(run), adapter(plain)
    assert found.keys() == other.keys()
    firsts = [tensor for name, tensor in found.items() if "lora_A" in name]
    for first in firsts:
        torch.testing.assert_close(first @ first.T, torch.eye(4), atol=1e-3, rtol=0)
    assert not any(tensor.any() for name, tensor in found.items() if "lora_B" in name)
    torch.testing.assert_close(logits(opened(run.folder)), logits(AutoModelForCausalLM.from_pretrained(TINY)))


def test_eva_begins_alike_whatever_the_batches_of_training(train: Train) -> None:
    """A row alone has fewer tokens than the 64 directions that are looked for here."""
    flags = (*LORA, *STILL, "--peft.lora_r=32", "--peft.lora_init_weights=eva")
    expected = adapter(train(*flags, name="expected"))
    found = adapter(train(*flags, "--training.per_device_train_batch_size=1"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_eva_with_more_directions_than_tokens_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"EVA looks for 8000 directions, and .* have fewer tokens"):
        train(*LORA, "--peft.lora_r=4000", "--peft.lora_init_weights=eva")


DRAW = """
import torch
from oumi_kernel import Component, hookimpl

class Draw(Component):
    '''Draws random numbers before the adapter does.'''
    @hookimpl(wrapper=True)
    def oumi_build_model(self):
        model = yield
        torch.rand(17)
        return model
"""


def test_the_seed_decides_the_start_and_nothing_else_does(train: Train, install: Install) -> None:
    first = adapter(train(*LORA, *STILL, name="first"))
    install("oumi-draw", "1.0", {"oumi.plugins": {"draw": "draw:Draw"}}, draw=DRAW)
    again = adapter(train(*LORA, *STILL, "--training.data_seed=3", "--peft.lora_dropout=0.5", name="again"))
    other = adapter(train(*LORA, *STILL, "--training.seed=7", name="other"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items() if "lora_A" in name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--peft.lora_init_weights=loftq",), "lora_init_weights: .*LoftQ.*GPU"),
        (("--peft.lora_init_weights=pissa", "--peft.lora_r=999"), r"lora_r: the rank is larger than the matrices of"),
        (("--peft.lora_init_weights=pissa_niter",), "lora_init_weights"),
        (
            ("--peft.lora_init_weights=olora", "--peft.peft_kwargs={use_rslora: true, rank_pattern: {q_proj: 2}}"),
            "use_rslora: .*cannot be saved",
        ),
    ],
)
def test_a_start_that_cannot_be_had_is_refused(train: Train, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*LORA, *flags)


def quantised_start(train: Train) -> Any:
    """Return the folder of an adapter whose config says that it began by LoftQ."""
    folder = train(*LORA, name="first").folder
    file = folder / "adapter_config.json"
    config = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_adapter_that_began_by_loftq_is_opened_where_there_is_a_gpu(train: Train) -> None:
    folder = quantised_start(train)
    message = r"began by LoftQ, and does so again when it is opened\. LoftQ quantises .* this machine has none"
    with pytest.raises(ConfigError, match=message):
        train(f"--model.adapter_model={folder}", name="on")
    with pytest.raises(ConfigError, match=message):
        merge(folder)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["adapter_only", "adapter_and_base_model", "merged"])
def test_loftq_trains_and_opens_by_the_library_alone(train: Train, mode: str) -> None:
    pytest.importorskip("scipy")
    flags = (*LORA, "--peft.lora_init_weights=loftq")
    alone = opened(train(*flags, name="alone").folder)
    assert not torch.allclose(logits(alone), logits(AutoModelForCausalLM.from_pretrained(TINY)), atol=1e-3)
    found = train(*flags, f"--peft.peft_save_mode={mode}")
    whole = opened(found.folder) if mode == "adapter_only" else AutoModelForCausalLM.from_pretrained(found.folder)
    torch.testing.assert_close(logits(whole), logits(alone), atol=1e-4, rtol=1e-3)
