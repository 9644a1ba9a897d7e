"""`oumi run --dry-run`: the verdict of the run, what it shows, and that it leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oumi_kernel.cli import main
from tests.conftest import QUICKSTART

Write = Callable[..., list[str]]

BROKEN_METRIC = """
class Broken:
    def __init__(self): raise RuntimeError("no such figure")
    def update(self, batch): ...
    def compute(self): return {}

def rows():
    raise KeyError("column")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with a model, rows, and a configuration that trains on them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    shutil.copytree(QUICKSTART / "model", tmp_path / "model")
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:12]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[12:16]))
    (tmp_path / "broken.jsonl").write_text(lines[0] + "\n{")
    (tmp_path / "no_answer.jsonl").write_text('{"messages": [{"role": "user", "content": "Why?"}]}')
    (tmp_path / "text.jsonl").write_text('{"text": "Words to learn."}\n' * 3)
    (tmp_path / "plugin.py").write_text(BROKEN_METRIC)
    (tmp_path / "a_file").touch()
    config = {
        "model": {"model_name": "./model"},
        "data": {
            "train": {
                "collator_name": "text_completions_only_with_padding",
                "datasets": [{"dataset_name": "text_sft", "dataset_path": "./rows.jsonl"}],
            },
        },
        "training": {"max_steps": 1, "per_device_train_batch_size": 12, "save_steps": 0, "enable_tensorboard": False},
    }
    (tmp_path / "train.yaml").write_text(json.dumps(config))
    return tmp_path


HELD_OUT = '--data.validation.datasets=[{"dataset_name": "text_sft", "dataset_path": "./held_out.jsonl"}]'
DATA = "--data.train.datasets[0]"
GOOD: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "evaluation with a metric": (HELD_OUT, "--training.metrics_function=perplexity"),
    "frozen layers": ('--model.freeze_layers=["embed_tokens"]',),
    "random weights": ("--model.load_pretrained_weights=false",),
    "another number format": ("--model.torch_dtype_str=bfloat16",),
    "mixed precision": ("--training.mixed_precision_dtype=bf16",),
    "gradient checkpointing": ("--training.enable_gradient_checkpointing",),
    "reentrant checkpointing": (
        "--training.enable_gradient_checkpointing",
        "--training.gradient_checkpointing_kwargs.use_reentrant=true",
    ),
    "another attention": ("--model.attn_implementation=eager",),
    "a token more": ('--model.tokenizer_pad_token="<new>"',),
    "adafactor": ("--training.optimizer=adafactor",),
    "a fused optimizer": ("--training.optimizer=adamw_torch_fused", "--training.lr_scheduler_type=cosine"),
    "a schedule that follows the loss": (HELD_OUT, "--training.lr_scheduler_type=reduce_lr_on_plateau"),
    "a shuffled part": (f"{DATA}.shuffle=true", f"{DATA}.sample_count=5"),
    "examples in the log": ("--training.log_examples",),
}
BAD: dict[str, tuple[int, tuple[str, ...]]] = {
    "a typo": (2, ("--training.learnig_rate=1",)),
    "an unknown optimizer": (2, ("--training.optimizer=adamx",)),
    "an unknown metric": (2, (HELD_OUT, "--training.metrics_function=blue")),
    "a trainer that is not there": (2, ("--training.trainer_type=VERL_GRPO",)),
    "packing that is not served": (2, ("--data.train.pack=true",)),
    "no such model": (2, ("--model.model_name=./nowhere",)),
    "a wrong value for the architecture": (2, ("--model.model_kwargs.hidden_act=nothing",)),
    "attention that is not installed": (2, ("--model.attn_implementation=flash_attention_2",)),
    "a pattern without a match": (2, ('--model.freeze_layers=["nothing"]',)),
    "weights that cannot be trained": (2, ("--model.torch_dtype_str=uint8",)),
    "kernels without a GPU": (2, ("--model.enable_liger_kernel=true",)),
    "fp16 without a GPU": (2, ("--training.mixed_precision_dtype=fp16",)),
    "an optimizer that refuses": (2, ("--training.optimizer=sgd", "--training.optimizer_kwargs.nesterov=true")),
    "a schedule that refuses": (
        2,
        ("--training.lr_scheduler_type=polynomial", "--training.lr_scheduler_kwargs.lr_end=1"),
    ),
    "a schedule without its evaluation": (2, ("--training.lr_scheduler_type=reduce_lr_on_plateau",)),
    "an unknown option of checkpointing": (
        2,
        ("--training.enable_gradient_checkpointing", "--training.gradient_checkpointing_kwargs.fast=true"),
    ),
    "no such data": (4, (f"{DATA}.dataset_path=./nowhere.jsonl",)),
    "a row that is no JSON": (4, (f"{DATA}.dataset_path=./broken.jsonl",)),
    "a row of another form": (4, (f"{DATA}.dataset_path=./text.jsonl",)),
    "nothing to learn": (4, (f"{DATA}.dataset_path=./no_answer.jsonl",)),
    "nothing left after truncation": (4, ("--training.trainer_kwargs.max_length=4",)),
    "rows longer than the model takes": (
        4,
        ("--model.model_max_length=64", "--training.trainer_kwargs.max_length=512"),
    ),
    "no rows taken": (4, (f"{DATA}.sample_count=0",)),
    "an output folder that is a file": (6, ("--training.output_dir=a_file",)),
    "no such checkpoint": (6, ("--training.resume_from_checkpoint=./nowhere",)),
    "a folder that is no checkpoint": (6, ("--training.resume_from_checkpoint=./model",)),
    "a dataset that fails": (7, ("--plugin=plugin.py:rows", f"{DATA}.dataset_name=rows", f"{DATA}.dataset_path=null")),
    "a metric that fails": (7, ("--plugin=plugin.py:Broken", HELD_OUT, "--training.metrics_function=Broken")),
}


def verdicts(*flags: str) -> tuple[int, int]:
    """Return the exit codes of the dry run, which must leave nothing, and of the run."""
    before = sorted(path.name for path in Path().iterdir())
    dry = main(["run", "train.yaml", "--dry-run", *flags])
    assert sorted(path.name for path in Path().iterdir()) == before
    return dry, main(["run", "train.yaml", *flags])


@pytest.mark.parametrize("name", GOOD)
def test_the_verdict_on_what_runs_is_that_of_the_run(folder: Path, name: str) -> None:
    assert verdicts(*GOOD[name]) == (0, 0)


@pytest.mark.parametrize("name", BAD)
def test_the_verdict_on_what_does_not_run_is_that_of_the_run(folder: Path, name: str) -> None:
    code, flags = BAD[name]
    assert verdicts(*flags) == (code, code)


def test_rows_without_an_answer_are_not_said_to_be_too_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdicts(f"{DATA}.dataset_path=./no_answer.jsonl") == (4, 4)
    text = capsys.readouterr().err
    assert text.count("0 of 1 rows have a supervised token, at any length. Check the roles of the turns") == 2
    assert "max_length" not in text


def _no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _cut_weights(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _fewer_weights(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("damage", [_no_weights, _cut_weights, _fewer_weights])
def test_weights_that_are_missing_are_found_without_reading_them(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "model")
    assert verdicts() == (2, 2)


def test_a_checkpoint_of_another_order_is_refused_and_a_fitting_one_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--training.per_device_train_batch_size=4", "--training.output_dir=first")
    assert main(["run", "train.yaml", *small, "--training.save_steps=1"]) == 0
    resume = "--training.resume_from_checkpoint=first/checkpoint-1"
    assert verdicts(resume, small[0], "--training.max_steps=2", "--training.data_seed=1") == (6, 6)
    capsys.readouterr()
    assert main(["run", "train.yaml", "--dry-run", small[0], resume, "--training.max_steps=2"]) == 0
    assert re.search(r"note +goes on from first/checkpoint-1, step 1 of 2\.", capsys.readouterr().out)


@pytest.mark.parametrize(
    "wanted", ["--training.try_resume_from_last_checkpoint", "--training.resume_from_checkpoint={}"]
)
def test_a_checkpoint_that_a_kill_left_under_another_name_is_found_where_the_run_puts_it_back(
    folder: Path, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "output"
    flags = ("--training.per_device_train_batch_size=4", "--training.output_dir=output", "--training.save_steps=1")
    assert main(["run", "train.yaml", *flags]) == 0
    (output / "checkpoint-1").rename(output / ".old-checkpoint-1")  # killed before its successor came
    (output / ".tmp-checkpoint-1").mkdir()
    left, flags = sorted(output.iterdir()), (*flags, wanted.format(output / "checkpoint-1"))
    capsys.readouterr()
    assert main(["run", "train.yaml", "--dry-run", *flags, "--training.max_steps=2"]) == 0
    assert "goes on from output/checkpoint-1, step 1 of 2." in capsys.readouterr().out.replace(f"{folder}/", "")
    dry = main(["run", "train.yaml", "--dry-run", *flags, "--training.data_seed=1"])
    assert sorted(output.iterdir()) == left
    assert (dry, main(["run", "train.yaml", *flags, "--training.data_seed=1"])) == (6, 6)
    assert main(["run", "train.yaml", *flags, "--training.max_steps=2"]) == 0
    assert sorted(output.glob(".*checkpoint-*")) == []


def test_a_folder_that_another_run_writes_into_is_refused_as_the_run_refuses_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "output"
    output.mkdir()
    hold = "import sys, pathlib; from oumi_kernel.disk import reserved\nwith reserved(pathlib.Path('output')): input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, text=True) as other:
        while not (output / ".lock").exists() or not (output / ".lock").read_text():
            assert other.poll() is None
            time.sleep(0.05)
        for flag in (["--dry-run"], []):
            assert main(["run", "train.yaml", *flag, "--training.output_dir=output"]) == 6
            assert f"another run, process {other.pid}, is writing into" in capsys.readouterr().err
        other.communicate("done")
    assert main(["run", "train.yaml", "--dry-run", "--training.output_dir=output"]) == 0


OTHERS = {
    "another optimizer": ("--training.optimizer=adafactor",),
    "other parameters": ('--model.freeze_layers=["embed_tokens"]',),
    "a schedule of another kind": ("--training.lr_scheduler_type=linear",),
    "fewer layers": ("--model.load_pretrained_weights=false", "--model.model_kwargs.num_hidden_layers=1"),
    "more layers": ("--model.load_pretrained_weights=false", "--model.model_kwargs.num_hidden_layers=3"),
    "wider layers": ("--model.load_pretrained_weights=false", "--model.model_kwargs.intermediate_size=192"),
    "another number format": ("--model.torch_dtype_str=bfloat16",),
    "another seed": ("--training.seed=7",),
    "nothing else": (),
}
WITH = {"a schedule of another kind": (HELD_OUT, "--training.lr_scheduler_type=reduce_lr_on_plateau")}
"""Flags of the run whose checkpoint is gone on from, where they are not those of the other runs."""


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_that_does_not_fit_is_refused_as_the_run_refuses_it(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ("--training.output_dir=first", "--training.save_steps=1", *WITH.get(name, ()))
    assert main(["run", "train.yaml", *first]) == 0
    resume = ("--training.resume_from_checkpoint=first/checkpoint-1", "--training.max_steps=2", *OTHERS[name])
    before, messages = sorted(path.name for path in Path().iterdir()), []
    for flag in (["--dry-run"], []):
        capsys.readouterr()
        code = main(["run", "train.yaml", *flag, *resume])
        found = re.findall("^error: .*", capsys.readouterr().err, re.M)
        messages.append((code, found))
        if flag:
            assert sorted(path.name for path in Path().iterdir()) == before
    assert messages[0] == messages[1]
    assert "iterable" not in str(messages)
    assert messages[0][0] == (0 if name in ("another number format", "nothing else") else 6)


def test_no_tensor_of_a_checkpoint_stays_in_the_optimizer_of_a_rehearsal(folder: Path) -> None:
    import torch

    from oumi_plugins.strategies._single import _without_numbers

    assert main(["run", "train.yaml", "--training.output_dir=first", "--training.save_steps=1"]) == 0
    found = _without_numbers(Path("first/checkpoint-1"))
    assert any(tensor.dim() == 2 for tensor in found.values())
    assert all(tensor.numel() == 0 or tensor.shape == torch.Size([]) for tensor in found.values())


def _gpt_oss(folder: Path) -> None:
    """Put a model into the folder whose eager attention does not look at where sequences begin."""
    from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "pad_token_id": 0}
    GptOssForCausalLM(GptOssConfig(**heads, **experts, **sizes)).save_pretrained(folder / "model")


PACKED = ("--data.train.pack=true", "--data.train.stream=true", "--model.model_max_length=256")


@pytest.mark.parametrize(("attention", "code"), [("eager", 2), ("null", 0)])
def test_packs_that_one_attention_would_mix_are_refused_without_weights_too(
    folder: Path, attention: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    _gpt_oss(folder)
    assert verdicts(*PACKED, f"--model.attn_implementation={attention}") == (code, code)
    assert capsys.readouterr().err.count("this model cannot keep packed examples apart") == code


def test_a_model_that_cannot_be_asked_in_small_is_named(folder: Path, capsys, monkeypatch) -> None:
    import oumi_plugins.trainers._small as module

    assert "not checked" not in report(capsys)
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "LARGEST", 0)
    found = re.search("not checked: whether this model keeps examples apart .*", report(capsys))
    assert found
    assert "LlamaForCausalLM cannot be built in small (" in found[0]


def test_no_weight_is_read_or_allocated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.nn

    largest = 0
    original = torch.nn.Module.register_parameter

    def watch(module: Any, name: str, parameter: Any) -> None:
        nonlocal largest
        on_cpu = parameter is not None and parameter.device.type == "cpu" and type(parameter.data) is torch.Tensor
        largest = max(largest, parameter.numel() if on_cpu else 0)
        original(module, name, parameter)

    monkeypatch.setattr(torch.nn.Module, "register_parameter", watch)
    monkeypatch.setattr("oumi_plugins.trainers._small.SMALL", 0)  # the model of this test is small as it is
    assert main(["run", "train.yaml", "--dry-run"]) == 0
    assert 0 < largest < 10_000  # the smallest matrix of the model has 64 x 176 elements


def report(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["run", "train.yaml", "--dry-run", *flags]) == 0
    return capsys.readouterr().out


def test_a_row_is_shown_raw_rendered_and_by_token_with_the_supervised_ones_marked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = report(capsys, "--rows=1")
    (row,) = (folder / "rows.jsonl").read_text().splitlines()[:1]
    assert json.loads(re.findall(r"raw \(row 0\)\n(.*)", text)[0]) == {"messages": json.loads(row)["messages"]}
    question, answer = (message["content"] for message in json.loads(row)["messages"])
    assert f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>" in text
    cells = re.findall(r"brackets\]: .*\n(.*)", text)[0].split()
    supervised = "".join(re.fullmatch(r"\[\d+:(.*)\]", cell)[1] for cell in cells if cell.startswith("["))
    assert supervised.replace("\N{OPEN BOX}", " ") == f"{answer}<|im_end|>"
    assert cells[0] == "1:<|im_start|>"
    assert "\x1b" not in text
    assert text.count("example 0") == 1
    assert "example 1" not in text


def test_data_cannot_steer_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "red\x1b[31m bell\x07 back\u202e\x9b wide\u3000tab\tline\nend"
    row = {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "Yes."}]}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    text = report(capsys, "--rows=1")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "red\\x1b[31m bell\\x07 back\\u202e" in text
    assert re.search("wide\u3000tab +line\nend", text)


def test_the_supervised_tokens_are_in_colour_on_a_terminal(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = report(capsys, "--rows=1")
    coloured = re.findall(r"\x1b\[1;32m(\S+?)\x1b\[0m", text)
    assert coloured
    assert all(cell.startswith("[") for cell in coloured)


def test_rows_are_conserved_and_lengths_are_those_of_the_examples(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    rows = [json.loads(line)["messages"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lengths = sorted(len(tokenizer.apply_chat_template(row, tokenize=True, return_dict=False)) for row in rows)
    text = report(capsys)
    assert f"min {lengths[0]}, median {lengths[5]}, p95 {lengths[11]}, max {lengths[-1]} tokens" in text
    assert f"of {sum(lengths)} tokens" in text.replace(",", "")
    share = 1 - sum(lengths) / (12 * lengths[-1])  # one batch holds all of them
    assert f"{share:.0%} of padded batches would be padding" in text
    short = report(capsys, "--training.trainer_kwargs.max_length=30")
    used, dropped, cut = re.findall(r"rows +12 = (\d+) used \+ (\d+) dropped; (\d+) cut", short)[0]
    assert int(used) + int(dropped) == 12
    assert 0 < int(dropped) < 12
    assert cut == used
    assert f"dropped        {dropped}: no supervised token within 30 tokens" in short


def test_steps_and_learning_rates_are_those_of_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--training.max_steps=-1",
        "--training.num_train_epochs=4",
        "--training.per_device_train_batch_size=2",
        "--training.gradient_accumulation_steps=2",
        "--training.lr_scheduler_type=cosine",
        "--training.warmup_steps=3",
        "--training.logging_steps=1",
        "--training.output_dir=real",
    )
    text = report(capsys, *flags)
    assert main(["run", "train.yaml", *flags]) == 0
    entries = [json.loads(line) for line in (folder / "real/metrics.jsonl").read_text().splitlines()]
    shown = {int(step): float(rate) for rate, step in re.findall(r"rate +(\S+) at step (\d+)", text)}
    assert set(shown) == {1, 4, 6, 12}
    real = {entry["step"]: entry["learning_rate"] for entry in entries}
    assert shown == pytest.approx({step: real[step] for step in shown}, rel=1e-3)
    assert re.search(rf"total +{len(real)} steps", text)
    assert re.search(r"batch +4 examples = 2 x 2 accumulated", text)
    assert re.search(r"per epoch +3 steps", text)


def test_what_does_not_fit_is_warned_about(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    import oumi_plugins.trainers._estimate as module

    assert "WARNING" not in report(capsys)
    monkeypatch.setattr(module, "free_memory", lambda: ("cpu", 1000))
    assert re.search(r"WARNING: \S+ MiB of memory will not fit into the 1000 bytes that are free", report(capsys))


LOADER = """
from oumi_kernel import hookimpl
from oumi_plugins.models.hf import HF
from oumi_kernel import Component

class Loader(Component):
    def __init__(self): self.inner = HF()
    @hookimpl
    def oumi_build_tokenizer(self, params, run): return self.inner.oumi_build_tokenizer(params, run)
    @hookimpl
    def oumi_build_model(self, params, tokenizer, arguments, run): ...
"""
TRAINER = """
from oumi_kernel import Component, hookimpl
class Plain:
    def prepare(self, split, rows, target): return [1]
    def plan(self, examples): ...
    def parameter_groups(self, model): ...
    def train(self, session): ...
class Trainer(Component):
    @hookimpl
    def oumi_build_trainer(self): return Plain()
"""


def test_what_a_stranger_does_not_offer_is_said(folder: Path, install, capsys) -> None:
    points = {"oumi.models": {"bare": "bare_plugin:Loader"}, "oumi.trainers": {"plain": "plain_plugin:Trainer"}}
    install("oumi-strange", "1.0", points, bare_plugin=LOADER, plain_plugin=TRAINER)
    flags = ("--model.tokenizer_name=./model", "--model.model_name=bare")
    (folder / "bare").symlink_to(folder / "model")
    text = report(capsys, *flags)
    assert "not checked: the model's loader builds none without weights" in text
    assert "brackets" in text
    text = report(capsys, "--training.trainer_type=plain")
    assert "not checked: the trainer 'plain' offers no previews and no estimate." in text


def test_rows_belong_to_a_dry_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "train.yaml", "--rows=3"]) == 2
    assert "--rows is the number of examples that --dry-run shows" in capsys.readouterr().err
    assert main(["train", "-c", "train.yaml", "--dry-run", "--rows=0"]) == 0
    assert "example 0" not in capsys.readouterr().out


def test_the_first_batch_is_written_to_the_log_when_asked_for(folder: Path) -> None:
    flags = ("--training.log_examples", "--training.per_device_train_batch_size=3", "--training.output_dir=out")
    assert main(["run", "train.yaml", *flags]) == 0
    log = (folder / "out/logs/rank_0.log").read_text()
    shown = re.findall(r"example (\d+): 1:<\|im_start\|> .*\[2:<\|im_end\|>\]", log)
    assert len(set(shown)) == 3


def test_a_dry_run_for_two_processes_counts_the_examples_of_both(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--nproc", "2", "--training.per_device_train_batch_size=3", "--training.gradient_accumulation_steps=2"]
    assert main(["run", "train.yaml", "--dry-run", *flags]) == 0
    printed = capsys.readouterr()
    assert "12 examples = 3 x 2 accumulated x 2 processes" in printed.out
    said = (
        r"balance +tokens of the busiest process of a step / mean: 1\.\d{3} \(1\.\d{3} if examples were dealt in turn"
    )
    assert re.search(said, printed.out)
    assert re.search(said, printed.err)  # the header of the run


def test_a_dry_run_for_several_processes_says_what_each_and_all_hold_and_send(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = 158_016
    text = report(capsys, "--nproc", "4", "--training.per_device_train_batch_size=1")
    assert "memory of each of 4 processes on cpu (an estimate)" in text
    assert re.search(r"gradients +617.2 KiB x 4 = 2.4 MiB +parameters that train", text)  # 4 bytes a parameter
    sent = 2 * 3 * 4 * parameters / 4 / 1024
    assert re.search(rf"gradients +{sent:.1f} KiB +all-reduce, once, among 4 processes", text)
    assert f"in all           {sent:.1f} KiB x 4 = {4 * sent / 1024:.1f} MiB" in text
    alone = report(capsys)
    assert "memory of one process on cpu (an estimate)" in alone
    assert " x " not in alone.split("memory of one process")[1]
    assert "sent by" not in alone
