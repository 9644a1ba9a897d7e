"""Every key of the configuration does something that a run shows, or is refused or warned of with its reason.

The tables below hold an entry for each field of the structs, which is a test itself: a new key needs a new entry.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from oumi_kernel import OumiError
from oumi_kernel.completeness import incompleteness
from oumi_kernel.config import DatasetParams, DatasetSplitParams, ModelParams, TrainingParams
from oumi_kernel.loading import load_text, split_overrides, to_yaml
from oumi_kernel.plugins import resolve, scan
from oumi_kernel.run import run_training
from oumi_plugins.trainers.sft import SftParams
from tests.conftest import QUICKSTART

DATASET = "data.train.datasets[0]"


class Seen(msgspec.Struct):
    """What a run shows of itself."""

    steps: int
    losses: list[float]
    norms: list[float]
    rates: list[float]
    logged: list[int]
    evaluated: list[int]
    figures: list[str]
    tokens: int
    skipped: int
    files: list[str]
    weights: dict[str, torch.Tensor]
    dtypes: list[str]
    tokenizer: str
    log: str
    forwards: dict[tuple[bool, bool], int]
    loaders: list[tuple[int, bool, int | None]]
    ignored: list[int]
    examples: int
    is_deterministic: bool
    compiled: int


class Changed(msgspec.Struct):
    """Of `given` and `given` with the key at `value`, runs differ in each of `shows`."""

    value: str
    shows: tuple[str, ...]
    given: tuple[str, ...] = ()
    flag: str = ""


class Refused(msgspec.Struct):
    """A run with the key at `value` ends with this error before its first step."""

    value: str
    match: str
    given: tuple[str, ...] = ()
    flag: str = ""


class Warned(msgspec.Struct):
    """A run with the key at `value` warns that it has no effect, and has none."""

    value: str
    match: str
    given: tuple[str, ...] = ()
    flag: str = ""


Case = Changed | Refused | Warned
EPOCH = "--training.max_steps=-1"
ADAMW = "--training.optimizer=adamw_torch"
BEST = (
    "--training.save_steps=1",
    "--training.eval_steps=1",
    "--training.learning_rate=5",
    "--training.max_grad_norm=0",
)
"""Steps so large that the last model is not the best one."""
BOARD = "--training.enable_tensorboard=true"
DROPOUT = "--model.model_kwargs.attention_dropout=0.3"
WORKERS = "--training.dataloader_num_workers=1"
CHECKPOINTED = "--training.enable_gradient_checkpointing=true"
REENTRANT = "--training.gradient_checkpointing_kwargs.use_reentrant=true"
MIXED = ("--data.train.datasets[0].mixture_proportion=0.5", "--data.train.seed=1")
EXPLODES = ("--training.learning_rate=1e30", "--training.max_grad_norm=null", "--training.max_steps=9")
SKIP = "--training.trainer_kwargs.on_nonfinite=skip"
NO_EFFECT = "no effect"
ONE_PROCESS = "there is one process"
NOT_INSTALLED = "none is installed|which is not installed"

TRAINING: dict[str, list[Case]] = {
    "use_peft": [Changed("true", ("files", "losses"))],
    "trainer_type": [Refused("TRL_DPO", NOT_INSTALLED)],
    "trainer_kwargs": [Refused("{nothing: 1}", "unknown key 'nothing'")],
    "output_dir": [Refused("/proc/nowhere", "cannot write into /proc/nowhere")],
    "run_name": [Changed("mine", ("files",), (BOARD,))],
    "seed": [Changed("7", ("losses", "weights"), (DROPOUT,))],
    "data_seed": [Changed("7", ("losses", "weights"))],
    "use_deterministic": [Changed("true", ("is_deterministic",))],
    "full_determinism": [Changed("true", ("is_deterministic",))],
    "num_train_epochs": [Changed("0.5", ("steps",), (EPOCH,)), Changed("2", ("steps",), (EPOCH,))],
    "max_steps": [Changed("1", ("steps",))],
    "per_device_train_batch_size": [Changed("4", ("losses", "tokens"))],
    "per_device_eval_batch_size": [Changed("1", ("forwards",))],
    "gradient_accumulation_steps": [Changed("2", ("losses", "tokens"))],
    "learning_rate": [Changed("0.02", ("rates", "losses", "weights"))],
    "optimizer": [Changed("adafactor", ("weights",))],
    "optimizer_kwargs": [Changed("{nesterov: true}", ("weights",), ("--training.sgd_momentum=0.9",))],
    "weight_decay": [Changed("0.1", ("weights",))],
    "max_grad_norm": [Changed("0.1", ("weights",)), Changed("null", ("weights",), ("--training.max_grad_norm=0.2",))],
    "adam_beta1": [Changed("0.5", ("weights",), (ADAMW,)), Warned("0.5", "it is for Adam")],
    "adam_beta2": [Changed("0.5", ("weights",), (ADAMW,)), Warned("0.5", "it is for Adam")],
    "adam_epsilon": [Changed("0.01", ("weights",), (ADAMW,)), Warned("0.01", "it is for Adam")],
    "sgd_momentum": [Changed("0.9", ("weights",)), Warned("0.9", "it is for SGD", (ADAMW,))],
    "lr_scheduler_type": [Changed("linear", ("rates", "weights"))],
    "lr_scheduler_kwargs": [Changed("{power: 2}", ("rates",), ("--training.lr_scheduler_type=polynomial",))],
    "warmup_ratio": [
        Changed("0.7", ("rates", "weights")),
        Warned("0.7", "training.warmup_steps is given too", ("--training.warmup_steps=1",)),
    ],
    "warmup_steps": [Changed("2", ("rates", "weights"))],
    "mixed_precision_dtype": [Changed("bf16", ("losses",))],
    "compile": [],
    "enable_gradient_checkpointing": [Changed("true", ("forwards",))],
    "gradient_checkpointing_kwargs": [
        Changed("{use_reentrant: true}", ("forwards",), (CHECKPOINTED,)),
        Warned("{use_reentrant: true}", "no effect while training.enable_gradient_checkpointing is false"),
    ],
    "save_steps": [Changed("2", ("files",))],
    "save_epoch": [Changed("true", ("files",), ("--training.max_steps=4",))],
    "save_final_model": [Changed("false", ("files",))],
    "resume_from_checkpoint": [
        Changed("CHECKPOINT", ("logged",), (ADAMW,)),
        Refused("./nowhere", "there is no such folder"),
    ],
    "try_resume_from_last_checkpoint": [],
    "eval_strategy": [Changed("epoch", ("evaluated",), ("--training.eval_steps=1",)), Changed("no", ("evaluated",))],
    "eval_steps": [Changed("1", ("evaluated",))],
    "metrics_function": [Changed("token_accuracy", ("figures",))],
    "metrics_kwargs": [
        Refused("{nothing: 1}", "unknown key 'nothing'", ("--training.metrics_function=perplexity",)),
        Warned("{nothing: 1}", "no effect while training.metrics_function is null"),
    ],
    "log_level": [Changed("warning", ("log",))],
    "dep_log_level": [Changed("info", ("log",))],
    "log_examples": [Changed("true", ("log",))],
    "enable_wandb": [Refused("true", NOT_INSTALLED)],
    "enable_mlflow": [Refused("true", NOT_INSTALLED)],
    "enable_tensorboard": [Changed("true", ("files",))],
    "tracker_kwargs": [Refused("{tensorboard: {nothing: 1}}", "no tracker named 'tensorboard' is on")],
    "logging_strategy": [Changed("no", ("logged",)), Changed("epoch", ("logged",), ("--training.max_steps=4",))],
    "logging_steps": [Changed("2", ("logged",))],
    "logging_first_step": [Changed("true", ("logged",), ("--training.logging_steps=2",))],
    "logging_dir": [
        Changed("elsewhere", ("files",), (BOARD,)),
        Warned("elsewhere", "no effect while training.enable_tensorboard is false"),
    ],
    "dataloader_num_workers": [Changed("1", ("loaders",))],
    "dataloader_persistent_workers": [
        Changed("true", ("loaders",), (WORKERS,)),
        Warned("true", "no effect while training.dataloader_num_workers is 0"),
    ],
    "dataloader_prefetch_factor": [
        Changed("3", ("loaders",), (WORKERS,)),
        Warned("3", "no effect while training.dataloader_num_workers is 0"),
    ],
    "dataloader_main_process_only": [Warned("true", "each process reads its own share")],
    "ddp_find_unused_parameters": [Warned("true", ONE_PROCESS)],
    "nccl_default_timeout_minutes": [Warned("10", ONE_PROCESS)],
    "include_performance_metrics": [Warned("true", "tokens and tokens per second are always logged")],
    "include_alternative_mfu_metrics": [Refused("true", "no component does this yet")],
    "log_model_summary": [Changed("true", ("log",))],
    "empty_device_cache_steps": [Warned("1", "empty_device_cache_steps: no effect: there is no GPU")],
    "label_ignore_index": [Changed("-7", ("ignored",))],
    "reward_functions": [Refused("[a]", "only GRPO trainers take rewards")],
    "reward_function_kwargs": [Refused("{a: {}}", "no reward function 'a' is named")],
    "grpo": [Refused("2", "it is for GRPO trainers", flag="training.grpo.num_generations")],
    "gkd": [Refused("0.3", "it is for the GKD trainer", flag="training.gkd.temperature")],
    "gold": [Refused("0.3", "it is for the GOLD trainer", flag="training.gold.temperature")],
    "verl_config_overrides": [Refused("{a: 1}", "it is for verl")],
    "profiler": [Refused("true", "no component does this yet", flag="training.profiler.profile_memory")],
    "telemetry": [
        Refused("true", "no component does this yet", flag="training.telemetry.collect_telemetry_for_all_ranks")
    ],
}

TRAINER: dict[str, list[Case]] = {
    "max_length": [Changed("40", ("tokens", "losses"))],
    "label_smoothing_factor": [Changed("0.1", ("losses", "weights"))],
    "load_best_model_at_end": [
        Refused("true", "load_best_model_at_end"),
        Changed("true", ("weights",), (*BEST,)),
    ],
    "save_total_limit": [Changed("1", ("files",), ("--training.save_steps=1",))],
    "ddp_bucket_cap_mb": [Warned("1", ONE_PROCESS)],
    "async_save": [],
    "compile_scope": [Warned("layers", "no effect while training.compile is false")],
    "on_nonfinite": [Refused("skip", "at step 5, .* one more than .*max_skipped_steps .3. allows", EXPLODES)],
    "max_skipped_steps": [
        Refused("1", "needs on_nonfinite: skip"),
        Refused("1", "at step 3, .* one more than .*max_skipped_steps .1. allows", (*EXPLODES, SKIP)),
    ],
    "gradient_checkpointing_mode": [  # what it computes again: test_savings
        Refused("selective", "it cannot select", (CHECKPOINTED, REENTRANT)),
        Warned("selective", "no effect while training.enable_gradient_checkpointing is false"),
    ],
    "gradient_checkpointing_every": [
        Changed("2", ("forwards",), (CHECKPOINTED,)),
        Warned("2", "no effect while training.enable_gradient_checkpointing is false"),
    ],
    "activation_offload": [Refused("true", "there is no GPU", (CHECKPOINTED,))],
    "optimizer_in_backward": [Refused("true", "nothing can be clipped")],  # what it changes: test_savings
}

MODEL: dict[str, list[Case]] = {
    "model_name": [Refused("./nowhere", "holds no|there is no folder")],
    "adapter_model": [Refused("./nowhere", "holds no adapter: there is no such folder")],
    "tokenizer_name": [Refused("./nowhere", "there is no folder")],
    "tokenizer_pad_token": [Changed("<new>", ("tokenizer",))],
    "tokenizer_kwargs": [Changed("{model_input_names: [input_ids]}", ("tokenizer",))],
    "processor_kwargs": [Refused("{a: 1}", "no component builds processors")],
    "model_max_length": [Changed("40", ("tokens", "losses"))],
    "load_pretrained_weights": [Changed("false", ("losses", "weights"))],
    "trust_remote_code": [Changed("true", ("log",))],
    "torch_dtype_str": [Changed("float64", ("dtypes",)), Changed("bfloat16", ("dtypes", "log"))],
    "compile": [Refused("true", "use training.compile")],
    "chat_template": [Changed("llama3-instruct", ("tokens", "tokenizer"))],
    "chat_template_kwargs": [Refused("{a: 1}", "the chat template never reads a variable 'a'")],
    "attn_implementation": [
        Changed("eager", ("norms",)),
        Refused("egaer", "no attention implementation is named 'egaer'. did you mean 'eager'"),
        Refused("flash_attention_2", "'flash_attention_2' needs flash_attn, which is not installed|no GPU|only on"),
    ],
    "device_map": [Refused("cuda:0", "the strategy places the model")],
    "model_kwargs": [Changed("{attention_dropout: 0.5}", ("losses", "weights"))],
    "enable_liger_kernel": [Refused("true", f"{NOT_INSTALLED}|this machine has none")],
    "kernel_kwargs": [
        Warned("{a: 1}", "no effect while model.enable_liger_kernel is false"),
        Refused("{a: 1}", "unknown key 'a'", ("--model.enable_liger_kernel=true",)),
    ],
    "kernels": [Refused("{nothing: {}}", "no kernel is named 'nothing'. Installed: liger")],
    "shard_for_eval": [Warned("true", "it is for evaluation harnesses")],
    "freeze_layers": [Changed("[embed_tokens]", ("weights", "log"))],
    "model_revision": [Warned("old", NO_EFFECT)],
    "tool_call_parser": [Warned("hermes", "it is for inference engines")],
}

SPLIT: dict[str, list[Case]] = {
    "datasets": [],
    "collator_name": [Changed("text_with_padding", ("losses",))],
    "collator_kwargs": [Refused("{nothing: 1}", "unknown key 'nothing'")],
    "train_target": [Changed("all_tokens", ("losses",))],
    "pack": [Refused("true", "pack needs stream")],
    "stream": [
        Refused("false", "pack needs stream", ("--data.train.pack=true", "--data.train.stream=true")),
        Warned("true", "rows are read one after another with or without it"),
    ],
    "target_col": [Refused("nothing", "there is no column 'nothing'")],
    "mixture_strategy": [
        Changed("all_exhausted", ("examples",), MIXED),
        Warned("all_exhausted", "no effect while no dataset has a mixture_proportion"),
    ],
    "seed": [
        Changed("2", ("losses",), MIXED),
        Warned("2", "no effect while no dataset has a mixture_proportion"),
    ],
    "use_torchdata": [Refused("true", "does not serve this key")],
}

DATASETS: dict[str, list[Case]] = {
    "dataset_name": [Refused("nowhere/at-all", "nowhere/at-all", (f"--{DATASET}.dataset_path=null",))],
    "dataset_path": [Refused("/nowhere.jsonl", "there is no file")],
    "subset": [Refused("a", "a local file has no subset")],
    "split": [Changed("train[:4]", ("examples", "tokens"))],
    "dataset_kwargs": [Refused("{format: alpaca}", "alpaca|instruction")],
    "sample_count": [Changed("4", ("examples", "tokens"))],
    "mixture_proportion": [Refused("0.5", "must be given for all datasets|must sum to 1")],
    "shuffle": [Changed("true", ("losses",), (f"--{DATASET}.sample_count=4", f"--{DATASET}.seed=1"))],
    "seed": [
        Changed("2", ("losses",), (f"--{DATASET}.sample_count=4", f"--{DATASET}.shuffle=true", f"--{DATASET}.seed=1")),
        Warned("2", "no effect while shuffle is false"),
    ],
    "shuffle_buffer_size": [Warned("7", "datasets are shuffled whole")],
    "trust_remote_code": [Warned("true", "reading rows runs no code of others")],
    "transform_num_workers": [Refused("2", "does not serve this key")],
}

TABLES: list[tuple[str, type, dict[str, list[Case]]]] = [
    ("training", TrainingParams, TRAINING),
    ("training.trainer_kwargs", SftParams, TRAINER),
    ("model", ModelParams, MODEL),
    ("data.train", DatasetSplitParams, SPLIT),
    (DATASET, DatasetParams, DATASETS),
]
ELSEWHERE = {  # keys whose effect has a test of its own below
    "compile": "test_compiling_compiles",
    "try_resume_from_last_checkpoint": "test_the_newest_checkpoint_is_gone_on_from_if_asked_for",
    "datasets": "test_a_second_dataset_is_trained_on",
    "async_save": "test_a_checkpoint_is_completed_by_another_thread_if_asked_for",
}


@pytest.mark.parametrize(("prefix", "struct", "table"), TABLES)
def test_every_key_has_an_entry(prefix: str, struct: type, table: dict[str, list[Case]]) -> None:
    assert set(table) == set(struct.__struct_fields__), prefix
    for name, cases in table.items():
        assert cases or ELSEWHERE[name] in globals(), name


def cases() -> Iterator[Any]:
    for prefix, _, table in TABLES:
        for name, entries in table.items():
            for case in entries:
                flag = case.flag or f"{prefix}.{name}"
                yield pytest.param(flag, case, id=f"{flag}={case.value}-{type(case).__name__}")


class Runner:
    """Runs of the real product on eight short rows, each kind once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, ...], Seen] = {}
        lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()
        (folder / "train.jsonl").write_text("\n".join(lines[:8]))
        (folder / "validation.jsonl").write_text("\n".join(lines[100:104]))

    def config(self, output: Path) -> dict[str, Any]:
        def split(name: str) -> dict[str, Any]:
            return {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(self.folder / f"{name}.jsonl")}]}

        training = {
            "output_dir": str(output),
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "optimizer": "sgd",
            "logging_steps": 1,
            "save_steps": 0,
            "enable_tensorboard": False,
        }
        collator = {"collator_name": "text_completions_only_with_padding"}
        data = {"train": split("train") | collator, "validation": split("validation")}
        return {"model": {"model_name": str(QUICKSTART / "model")}, "data": data, "training": training}

    def run(self, *flags: str, output: Path | None = None) -> Seen:
        if flags in self.known and output is None:
            return self.known[flags]
        output = output or Path(tempfile.mkdtemp(dir=self.folder))
        config = self.config(output)
        if any("mixture_proportion" in flag and "train.seed" in "".join(flags) for flag in flags):
            first = config["data"]["train"]["datasets"][0]
            config["data"]["train"]["datasets"].append(first | {"sample_count": 3, "mixture_proportion": 0.5})
        overrides, _ = split_overrides([flag.replace("elsewhere", str(output / "elsewhere")) for flag in flags])
        loaded = load_text(to_yaml(config), "test.yaml", overrides)
        forwards: dict[tuple[bool, bool], int] = {}
        loaders: list[DataLoader[Any]] = []
        with pytest.MonkeyPatch.context() as patch, count_forwards(forwards):
            original = DataLoader.__init__
            patch.setattr(DataLoader, "__init__", lambda s, *a, **k: (loaders.append(s), original(s, *a, **k))[1])
            summary = run_training(loaded, resolve(loaded, scan()))
        self.known[flags] = seen(output, summary, forwards, loaders)
        return self.known[flags]


class count_forwards:  # noqa: N801 - a context manager, named like a function
    """Counts calls of the model's feed-forward layers by (training, with gradient)."""

    def __init__(self, into: dict[tuple[bool, bool], int]) -> None:
        self.into = into

    def __enter__(self) -> None:
        def note(module: torch.nn.Module, inputs: object) -> None:
            if type(module).__name__.endswith("MLP"):
                key = (module.training, torch.is_grad_enabled())
                self.into[key] = self.into.get(key, 0) + 1

        self.handle = torch.nn.modules.module.register_module_forward_pre_hook(note)

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


def seen(folder: Path, summary: Any, forwards: dict[tuple[bool, bool], int], loaders: list[Any]) -> Seen:
    file = folder / "model.safetensors"
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    log = (folder / "logs/rank_0.log").read_text().replace(str(folder), "OUTPUT")
    tensors = load_file(file) if file.exists() else {}
    examples = loaders[0].dataset
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    tokenizer = (folder / "tokenizer_config.json", folder / "chat_template.jinja")
    return Seen(
        steps=summary.steps,
        losses=[entry["loss"] for entry in steps],
        norms=[entry["grad_norm"] for entry in steps],
        rates=[entry["learning_rate"] for entry in steps],
        logged=[entry["step"] for entry in steps],
        evaluated=[entry["step"] for entry in evaluations],
        figures=sorted({key for entry in evaluations for key in entry}),
        tokens=steps[-1]["tokens"] if steps else 0,
        skipped=steps[-1]["skipped"] if steps else 0,
        files=sorted(re.sub(r"tfevents.*", "tfevents", name) for name in files),
        weights=tensors,
        dtypes=sorted({str(tensor.dtype) for tensor in tensors.values()}),
        tokenizer="".join(path.read_text() for path in tokenizer if path.exists()),
        log=re.sub(r"^\S+ \S+ |[\d,]+ tok/s.*|\d+ rows in .*", "", log, flags=re.MULTILINE),
        forwards=forwards,
        loaders=[(loader.num_workers, loader.persistent_workers, loader.prefetch_factor) for loader in loaders],
        ignored=sorted({int(label) for row in examples for label in row["labels"] if int(label) < 0}),
        examples=len(examples),
        is_deterministic=torch.are_deterministic_algorithms_enabled(),
        compiled=sum(torch._dynamo.utils.counters["frames"].values()),
    )


def differs(left: object, right: object) -> bool:
    """Compare what two runs showed; tensors to the bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() != right.keys() or any(differs(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype != right.dtype or not torch.equal(left, right)
    return left != right


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("effects"))
    made.run()  # libraries are imported in the first run, and some of them log that
    made.known.clear()
    yield made
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("flag", "case"), list(cases()))
def test_a_key_shows_or_says_why_not(runner: Runner, flag: str, case: Case) -> None:
    value = case.value
    if value == "CHECKPOINT":
        value = str(runner.folder / "earlier/checkpoint-2")
        runner.run(*case.given, "--training.save_steps=2", output=runner.folder / "earlier")
    changed = f"--{flag}={value}"
    if isinstance(case, Refused):
        with pytest.raises(OumiError, match=case.match):
            runner.run(*case.given, changed)
        return
    before, after = runner.run(*case.given), runner.run(*case.given, changed)
    if isinstance(case, Warned):
        assert re.search(case.match, after.log), after.log
        same = set(Seen.__struct_fields__) - {"log"}
        assert not [name for name in same if differs(getattr(before, name), getattr(after, name))]
        return
    for name in case.shows:
        assert differs(getattr(before, name), getattr(after, name)), name


def test_the_same_run_twice_shows_the_same(runner: Runner) -> None:
    """Otherwise any change above would be found by chance."""
    first = runner.run()
    again = runner.run(output=runner.folder / "again")
    assert not [name for name in Seen.__struct_fields__ if differs(getattr(first, name), getattr(again, name))]


def test_a_checkpoint_is_completed_by_another_thread_if_asked_for(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[tuple[str, str]] = []
    original = os.rename
    note = lambda old, new: renamed.append((threading.current_thread().name, Path(new).name))  # noqa: E731
    monkeypatch.setattr(os, "rename", lambda old, new: (note(old, new), original(old, new))[1])
    flags = ("--training.save_steps=1", "--training.max_steps=2")
    aside = runner.run(*flags, "--training.trainer_kwargs.async_save=true", output=tmp_path / "aside")
    assert [new for thread, new in renamed if thread.startswith("checkpoint")] == ["checkpoint-1", "checkpoint-2"]
    renamed.clear()
    assert runner.run(*flags, output=tmp_path / "here").files == aside.files
    assert not [new for thread, new in renamed if thread.startswith("checkpoint")]
    for step in (1, 2):
        assert not incompleteness(tmp_path / f"aside/checkpoint-{step}")


def test_a_second_dataset_is_trained_on(runner: Runner) -> None:
    assert runner.run(*MIXED).examples > 0
    assert runner.run(*MIXED).examples != runner.run().examples


def test_the_newest_checkpoint_is_gone_on_from_if_asked_for(runner: Runner) -> None:
    output, flags = runner.folder / "newest", ("--training.save_steps=2", ADAMW)
    runner.run(*flags, output=output)
    again = runner.run(*flags, "--training.max_steps=3", output=output)
    assert "going on" not in again.log
    shutil.rmtree(output / "checkpoint-3")  # that of the end, with which nothing would be left to do
    resumed = runner.run(*flags, "--training.try_resume_from_last_checkpoint=true", output=output)
    assert "going on from step 2 of 3" in resumed.log
    assert not differs(resumed.weights, again.weights)


@pytest.mark.slow
@pytest.mark.exhaustive  # test_compiling and test_loop compile too
def test_compiling_compiles(runner: Runner) -> None:
    before = runner.run().compiled  # frames of the process so far
    assert runner.run("--training.compile=true").compiled > before
