"""QLoRA through the whole product, against peft and bitsandbytes in a plain loop."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oumi_kernel import ConfigError
from oumi_plugins.peft._quantization import adapts_quantised
from oumi_plugins.trainers._order import epoch_order
from tests.peft.quantised import TINY, WAYS, adapted, base, flags
from tests.trainers import reference_trainer
from tests.trainers.conftest import Finished, Train
from tests.trainers.test_loop import oracle_rows

EVALUATED = ("--training.eval_strategy=steps", "--training.eval_steps=1", "--training.per_device_eval_batch_size=3")


def adapter(run: Finished) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter_model.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_steps_equal_those_of_the_libraries_alone(train: Train, tmp_path: Path, way: str) -> None:
    """The run evaluates between its steps, the plain loop does not: evaluation leaves no trace."""
    run = train(*flags(way), *EVALUATED, "--training.learning_rate=0.5", validation=7)
    rows = oracle_rows(tmp_path)
    ordered = [rows[index] for index in epoch_order(len(rows), 42, 0)]
    model = adapted(way)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = reference_trainer.train(model, [ordered], rows_per_step=8, optimizer=torch.optim.SGD(trained, 0.5))
    rounding = 5e-4 if way == "computed in bfloat16" else 1e-4
    assert run.figures("loss") == pytest.approx(losses, rel=rounding)
    expected = get_peft_model_state_dict(model)
    tolerance = 0.05 if way == "computed in bfloat16" else 2e-3  # sequences end to end are rounded otherwise
    found = adapter(run)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert bool(tensor.any()), name
        torch.testing.assert_close(tensor, expected[name], rtol=tolerance, atol=tolerance / 10, msg=name)


@pytest.mark.parametrize("way", ["nested", "8 bits"])
def test_a_saved_adapter_opens_on_the_quantised_base_and_on_the_whole_one(
    train: Train, tmp_path: Path, way: str
) -> None:
    run = train(*flags(way), *EVALUATED, "--training.learning_rate=0.5", validation=7)
    rows = oracle_rows(tmp_path, "validation.jsonl")
    on_quantised = PeftModel.from_pretrained(base(way), run.folder)
    on_quantised.train(way != "8 bits")  # 8-bit layers quantise their input, too, when they do not train
    expected = run.figures("eval_loss")[-1]
    assert reference_trainer.evaluate(on_quantised, rows) == pytest.approx(expected, rel=1e-5)
    whole = AutoModelForCausalLM.from_pretrained(TINY)
    before = reference_trainer.evaluate(whole, rows)
    assert reference_trainer.evaluate(PeftModel.from_pretrained(whole, run.folder), rows) < before


@pytest.mark.parametrize("way", ["nested", "8 bits"])
def test_a_run_that_goes_on_ends_with_the_same_bits(train: Train, way: str) -> None:
    settings = (
        *flags(way),
        *EVALUATED,
        "--training.optimizer=adamw",
        "--peft.lora_dropout=0.1",
        "--training.save_steps=2",
        "--training.max_steps=4",
    )
    straight = train(*settings, name="straight", validation=5)
    again = f"--training.resume_from_checkpoint={straight.folder}/checkpoint-2"
    resumed = train(*settings, again, name="resumed", validation=5)
    for name in ("adapter_model", "optimizer"):
        expected = load_file(straight.folder / f"checkpoint-4/{name}.safetensors")
        found = load_file(resumed.folder / f"checkpoint-4/{name}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items()), name


@pytest.mark.parametrize("way", ["nf4", "8 bits"])
@pytest.mark.parametrize("reentrant", ["true", "false"])
def test_layers_that_are_computed_again_give_every_adapter_the_same_gradient(
    train: Train, way: str, reentrant: str
) -> None:
    plain = train(*flags(way), name="plain")
    again = train(
        *flags(way),
        "--training.enable_gradient_checkpointing=true",
        f"--training.gradient_checkpointing_kwargs.use_reentrant={reentrant}",
        name="again",
    )
    found, expected = adapter(again), adapter(plain)
    assert all(bool(tensor.any()) for tensor in found.values())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("way", ["computed in bfloat16", "8 bits"])
@pytest.mark.parametrize("precision", ["--model.torch_dtype_str=bfloat16", "--training.mixed_precision_dtype=bf16"])
def test_an_adapter_trains_in_float32_beside_16_bits(train: Train, way: str, precision: str) -> None:
    exact = train(*flags(way), name="exact")
    run = train(*flags(way), precision, name="run")
    assert run.figures("loss") == pytest.approx(exact.figures("loss"), rel=0.02)
    assert run.figures("loss") != exact.figures("loss")
    assert {tensor.dtype for tensor in adapter(run).values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["fp4", "nested", "8 bits"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_on_a_gpu_an_adapter_trains_in_float32_beside_16_bits(train: Train, way: str, precision: str) -> None:
    exact = train(*flags(way), name="exact")
    run = train(*flags(way), f"--training.mixed_precision_dtype={precision}", name="run")
    assert run.figures("loss") == pytest.approx(exact.figures("loss"), rel=0.02)
    assert {tensor.dtype for tensor in adapter(run).values()} == {torch.float32}
    assert all(bool(tensor.any()) for tensor in adapter(run).values())


@pytest.mark.gpu
def test_a_paged_optimizer_trains_a_quantised_model_as_one_that_is_not_paged_does(train: Train) -> None:
    whole, paged = (
        train(*flags("nested"), f"--training.optimizer={name}adamw_8bit", name=f"{name}run") for name in ("", "paged_")
    )
    assert paged.figures("loss") == pytest.approx(whole.figures("loss"), rel=1e-3)


def test_no_padding_is_computed_and_the_head_is_cut_into_chunks(
    train: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oumi_plugins.trainers import _forward

    heads: list[Any] = []
    choose = _forward.Forward.choose
    monkeypatch.setattr(
        _forward.Forward, "choose", lambda self, *a: (choose(self, *a), heads.append((self.is_flat, self._head)))[0]
    )
    train(*flags("nf4"), "--training.max_steps=1")
    assert [(flat, type(head)) for flat, head in heads] == [(True, torch.nn.Linear)]
    assert "padded" not in caplog.text


def test_an_8_bit_adapter_on_a_cpu_is_not_dora(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"peft.q_lora_bits: DoRA cannot read 8-bit weights on a CPU.*Set it to 4"):
        train(*flags("8 bits"), "--peft.peft_kwargs.use_dora=true")
    assert all(
        bool(tensor.any()) for tensor in adapter(train(*flags("nf4"), "--peft.peft_kwargs.use_dora=true")).values()
    )


@pytest.mark.parametrize(
    ("method", "bits", "works"),
    [("ia3", 4, False), ("ia3", 8, False), ("adalora", 8, False), ("adalora", 4, True), ("vera", 8, True)],
)
def test_methods_that_give_float32_are_refused_beside_16_bits(
    train: Train, method: str, bits: int, works: bool
) -> None:
    """Where they work the model is asked, as it is where they do not: the table is that of the library."""
    asked = ("--peft.q_lora", f"--peft.q_lora_bits={bits}", f"--peft.peft_method={method}", "--training.max_steps=3")
    in_16_bits = "--model.torch_dtype_str=bfloat16"
    if works:
        train(*asked, in_16_bits)
        return
    with pytest.raises(ConfigError, match=r"model.torch_dtype_str: peft's \w+ gives float32 on weights of \d bits"):
        train(*asked, in_16_bits)
    train(*asked, "--training.mixed_precision_dtype=bf16")


@pytest.mark.parametrize(
    ("config_class", "adapts"),
    [
        ("LoraConfig", True),
        ("IA3Config", True),
        ("AdaLoraConfig", True),
        ("VeraConfig", True),
        ("OFTConfig", True),
        ("PromptTuningConfig", True),
        ("LoHaConfig", False),
        ("LoKrConfig", False),
        ("FourierFTConfig", False),
        ("HRAConfig", False),
    ],
)
def test_what_adapts_quantised_layers_is_what_the_library_says(config_class: str, adapts: bool) -> None:
    """The four that do not either fail on a 4-bit layer, or take its bytes for the numbers that they stand for."""
    assert adapts_quantised(config_class) is adapts


def test_a_method_that_reads_bytes_as_numbers_is_refused_with_one_that_does_not(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oumi_plugins.peft.lora import Lora

    assert issubclass(peft.LoHaConfig, peft.PeftConfig)
    monkeypatch.setattr(Lora, "config_class", "LoHaConfig")
    with pytest.raises(ConfigError, match=r"peft.peft_method: peft's LoHaConfig cannot adapt quantised layers"):
        train(*flags("nf4"))


def test_without_the_library_it_is_said_what_to_install(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ConfigError, match=r"needs bitsandbytes, which is not installed. pip install 'oumi-kernel\[quant"
    ):
        train(*flags("nf4"))


def test_bitsandbytes_does_not_warn_in_every_step(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    train(*flags("8 bits"), *EVALUATED, "--training.max_steps=2", validation=3)
    assert [record for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_a_model_that_was_saved_quantised_is_trained_as_it_is(train: Train, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    base("nested").save_pretrained(saved)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (saved / name).write_bytes((TINY / name).read_bytes())
    assert json.loads((saved / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    from_saved = train(*flags("nested"), f"--model.model_name={saved}", name="from_saved")
    assert from_saved.figures("loss") == train(*flags("nested"), name="run").figures("loss")
    with pytest.raises(ConfigError, match=r"peft.bnb_4bit_quant_type: fp4, but the weights are saved with nf4"):
        train(*flags("fp4"), f"--model.model_name={saved}")
    with pytest.raises(ConfigError, match=r"only adapters are trained on such weights. Set peft.q_lora: true"):
        train(f"--model.model_name={saved}")
