"""The estimate of memory and disk, against what models, optimizers, checkpoints and processes really take."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from oumi_kernel.cli.configuration import open_sound_config
from oumi_kernel.contracts import World
from oumi_kernel.dry_run import dry_run
from oumi_kernel.loading import split_overrides
from oumi_kernel.plugins import resolve
from oumi_kernel.rehearsal import Estimate
from oumi_kernel.run import run_training
from tests.conftest import QUICKSTART, few_of
from tests.optimizers.by_hand import eager
from tests.strategies.forked import IMPORTED_ONCE, outcomes

ON_A_CPU = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(), reason="reads in /proc what a process takes that has no GPU"
)
RECOMPUTED = "--training.enable_gradient_checkpointing"
Start = Callable[..., Any]


class Collected:
    """A report that keeps the estimate."""

    estimate_of_run: Estimate

    def examples(self, split: str, previews: Sequence[Any]) -> None: ...
    def data(self, split: str, stage: Any, lengths: Any) -> None: ...
    def steps(self, session: Any, rates: Mapping[int, float]) -> None: ...
    def missing(self, what: str) -> None:
        raise AssertionError(what)

    def estimate(self, estimate: Estimate) -> None:
        self.estimate_of_run = estimate

    def bytes_of(self, what: str) -> int:
        parts = (*self.estimate_of_run.memory, *self.estimate_of_run.disk)
        return next(amount.bytes or 0 for amount in parts if amount.what == what)


def configure(folder: Path, model: Path, **training: Any) -> Path:
    lines = (QUICKSTART / "data/train.jsonl").read_text().splitlines()[:16]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    dataset = {"dataset_name": "text_sft", "dataset_path": str(folder / "rows.jsonl")}
    config = {
        "model": {"model_name": str(model), "load_pretrained_weights": False},
        "data": {"train": {"datasets": [dataset]}},
        "training": {"output_dir": str(folder / "out"), "max_steps": 2, "enable_tensorboard": False, "save_steps": 0}
        | training,
    }
    (folder / "train.json").write_text(json.dumps(config))
    return folder / "train.json"


def estimated(config: Path, *flags: str) -> Collected:
    overrides, _ = split_overrides(flags)
    loaded, catalogue = open_sound_config(str(config), overrides)
    collected = Collected()
    dry_run(loaded, resolve(loaded, catalogue), World(), 0, collected)
    return collected


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return configure(tmp_path, QUICKSTART / "model")


def test_tied_weights_count_once_and_frozen_ones_have_no_gradient(config: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    frozen = model.get_input_embeddings().weight.numel()
    found = estimated(config, '--model.freeze_layers=["embed_tokens"]')
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert found.bytes_of("weights") == model.num_parameters() * 4 + buffers
    assert found.bytes_of("gradients") == (model.num_parameters() - frozen) * 4
    assert found.estimate_of_run.parameters == model.num_parameters() == 158_016
    assert found.estimate_of_run.trained == 158_016 - frozen


RANK = "--training.optimizer_kwargs={rank: 4}"


@pytest.mark.parametrize(
    ("name", "flags", "library"),
    [
        ("adamw_torch", (), ""),
        ("adam", (), ""),
        ("adafactor", (), ""),
        ("adagrad", (), ""),
        ("sgd", (), ""),
        ("sgd", ("--training.sgd_momentum=0.9",), ""),
        ("muon", (), ""),
        ("adamw_8bit", (), "bitsandbytes"),
        ("ademamix_8bit", (), "bitsandbytes"),
        ("paged_lion_32bit", (), "bitsandbytes"),
        ("galore_adamw", (RANK,), "galore_torch"),
        ("galore_adafactor", (RANK,), "galore_torch"),
        ("apollo_adamw", (RANK,), "apollo_torch"),
        ("schedule_free_adamw", ("--training.lr_scheduler_type=constant",), "schedulefree"),
        ("adamw_torch_8bit", (), "torchao"),
        ("adamw_torch_4bit", (), "torchao"),
    ],
)
def test_the_optimizers_state_is_what_it_keeps_after_a_step(
    config: Path, name: str, flags: tuple[str, ...], library: str
) -> None:
    if library:
        pytest.importorskip(library)
    if library == "torchao":
        forget_tables()
    flags = (f"--training.optimizer={name}", "--training.save_steps=2", *flags)
    found = estimated(config, *flags)
    overrides, _ = split_overrides(flags)
    loaded, catalogue = open_sound_config(str(config), overrides)
    with eager():
        run_training(loaded, resolve(loaded, catalogue))
    from safetensors.torch import load_file

    folder = Path(loaded.config.training.output_dir) / "checkpoint-2"
    state = load_file(folder / "optimizer.safetensors")
    sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in state.items()}
    while_it_trains = sum(size for key, size in sizes.items() if not key.endswith(":y"))  # what is only saved
    assert found.bytes_of("optimizer state") == while_it_trains
    assert (while_it_trains == 0) == (name == "sgd" and len(flags) == 2)
    weights = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
    assert found.bytes_of("checkpoints") == pytest.approx(sum(sizes.values()) + weights, rel=1e-3)


def forget_tables() -> None:
    """Let torchao make its tables anew, as it does in the process of a dry run, which takes no real step first."""
    from torchao.optim import subclass_4bit, subclass_8bit

    for module in (subclass_4bit, subclass_8bit):
        module.get_qmap_signed.cache_clear()
        module.get_qmap_unsigned.cache_clear()


@pytest.mark.parametrize("name", ["adamw_8bit", "galore_adamw", "apollo_adamw", "muon", "schedule_free_adamw"])
def test_an_optimizer_says_what_it_has_to_say_once_in_a_dry_run(config: Path, name: str, caplog) -> None:
    for library in ("bitsandbytes", "galore_torch", "apollo_torch", "schedulefree"):
        pytest.importorskip(library)
    estimated(config, f"--training.optimizer={name}")
    said = [record.message for record in caplog.records if "schedule" in record.message]
    assert len(said) == (name == "schedule_free_adamw")


def kept_by_a_real_pass(model: Any, tokens: int) -> int:
    """Return the bytes that autograd holds after a real forward pass of one row, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=torch.ones((1, tokens), dtype=torch.int64), use_cache=False)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_autograd_keeps(tmp_path: Path, attention: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configure(tmp_path, QUICKSTART / "model", per_device_train_batch_size=1)
    found = estimated(config, f"--model.attn_implementation={attention}").bytes_of("activations")
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    rows = [json.loads(line)["messages"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    longest = max(len(tokenizer.apply_chat_template(row, return_dict=False)) for row in rows)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model", attn_implementation=attention).train()
    assert found == pytest.approx(kept_by_a_real_pass(model, longest), rel=0.1)


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing_and_mixed_precision(config: Path) -> None:
    def activations(*flags: str) -> int:
        return estimated(config, *flags).bytes_of("activations")

    one, eight = (activations(f"--training.per_device_train_batch_size={size}") for size in (1, 8))
    assert 3 < eight / one < 8  # rows differ in length, and the largest micro-batch counts
    assert activations("--training.enable_gradient_checkpointing") < eight * 0.6  # half: the model has two layers
    assert activations("--training.mixed_precision_dtype=bf16") < eight


def test_gradients_of_earlier_micro_batches_are_added(config: Path) -> None:
    once, twice = (estimated(config, f"--training.gradient_accumulation_steps={steps}") for steps in (1, 2))
    more = twice.estimate_of_run.peak_bytes - once.estimate_of_run.peak_bytes
    gradients = once.bytes_of("gradients")
    assert 0.5 * gradients < more <= 1.36 * gradients  # of one micro-batch they come as activations go; 0.35 is kept


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix == ".safetensors")


def test_disk_is_what_checkpoints_and_model_take(config: Path) -> None:
    flags = ("--training.save_steps=1", "--training.max_steps=4", "--training.trainer_kwargs.save_total_limit=2")
    found = estimated(config, *flags)
    overrides, _ = split_overrides(flags)
    loaded, catalogue = open_sound_config(str(config), overrides)
    run_training(loaded, resolve(loaded, catalogue))
    output = config.parent / "out"
    (checkpoint, _) = sorted(output.glob("checkpoint-*"))
    at_once = 3  # two that are kept, and a new one before the oldest is deleted
    assert found.bytes_of("checkpoints") == pytest.approx(at_once * size_of(checkpoint), rel=0.03)
    assert found.bytes_of("final model") == pytest.approx((output / "model.safetensors").stat().st_size, rel=0.03)
    assert estimated(config, *flags[:2]).bytes_of("checkpoints") == pytest.approx(4 * size_of(checkpoint), rel=0.03)


def test_free_memory_is_what_the_machine_or_its_container_has_left(tmp_path: Path, monkeypatch) -> None:
    from oumi_plugins.trainers import _free

    if torch.cuda.is_available():
        pytest.skip("asks the GPU instead")
    monkeypatch.setattr(_free, "CGROUP", tmp_path)
    device, free = _free.free_memory()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert device == "cpu"
    assert free is not None
    assert 0 < free < total
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _free.free_memory()[1] == pytest.approx(free, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    assert _free.free_memory()[1] == 4000


def measured(folder: Path, configs: Sequence[Path]) -> list[int]:
    """Return the peaks of the resident memory of real runs, each in a process of its own, libraries included."""
    runs = [{"config": str(config), "flags": [], "processes": 1} for config in configs]
    found = outcomes(folder, runs, (*IMPORTED_ONCE, "bitsandbytes"), seconds=3000)
    failed = [one["error"] for one in found if one["error"]]
    assert not failed, found[0]["stderr"][-3000:]
    return [one["peak"] for one in found]


def real_runs(folder: Path, names: Sequence[str], make: Callable[[Path, str], Path]) -> dict[str, tuple[Path, int]]:
    """Return name -> configuration of a run, and what the run takes at its peak without libraries.

    Args:
        folder: Where they are made.
        names: Their names.
        make: Writes the configuration of a name into a folder; of `tiny`, that of a model which is next to nothing.
    """
    for name in ("tiny", *names):
        (folder / name).mkdir()
    tiny, *configs = [make(folder / name, name) for name in ("tiny", *names)]
    libraries, *peaks = measured(folder, [tiny, *configs])
    base = libraries - estimated(tiny).estimate_of_run.peak_bytes
    return {name: (config, peak - base) for name, config, peak in zip(names, configs, peaks, strict=True)}


AGAIN: dict[str, Any] = {"enable_gradient_checkpointing": True, "per_device_train_batch_size": 6}
SELECTIVE = {"trainer_kwargs": {"gradient_checkpointing_mode": "selective"}}
SECOND = {"trainer_kwargs": {"gradient_checkpointing_every": 2}}
IN_BACKWARD = {"trainer_kwargs": {"optimizer_in_backward": True}, "max_grad_norm": None}
MOST_FROZEN = {"freeze_layers": ["embed_tokens", *(f"layers.{layer}" for layer in range(8))]}
REAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "bf16": ({"mixed_precision_dtype": "bf16", "per_device_train_batch_size": 2}, {}),
    "recomputed": (AGAIN, {}),
    "selective": (AGAIN | SELECTIVE, {}),
    "every-second": (AGAIN | SECOND, {}),
    "in-backward": (IN_BACKWARD | {"per_device_train_batch_size": 1}, {}),
    "accumulated": ({"gradient_accumulation_steps": 2}, {}),
    "frozen": ({"per_device_train_batch_size": 4}, {"model": MOST_FROZEN}),
    "packed": ({}, {"data": {"pack": True, "stream": True}}),
    "wide-vocabulary": ({}, {"shape": {"vocab_size": 32_000, "num_hidden_layers": 4}}),
    "saving": ({"per_device_train_batch_size": 1, "save_steps": 1}, {}),
    "sgd": ({"optimizer": "sgd", "per_device_train_batch_size": 4}, {}),
    "8-bit": ({"optimizer": "adamw_8bit", "per_device_train_batch_size": 1}, {}),
    "low-rank": ({"optimizer": "galore_adamw", "optimizer_kwargs": {"rank": 4}, "per_device_train_batch_size": 1}, {}),
}
FEW = ["full", "recomputed", "selective", "in-backward", "frozen", "8-bit"]
"""Those that are measured without `--exhaustive`."""


def long_rows(folder: Path, name: str) -> Path:
    """Return the configuration of a run of `REAL`, of a model of some 30 million parameters on rows of 256 tokens."""
    training, others = REAL[name]
    shutil.copytree(QUICKSTART / "model", folder / "model")
    shape = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10, "vocab_size": 2048}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    file = folder / "model/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | shape | heads | others.get("shape", {})))
    config = configure(folder, folder / "model", **({"per_device_train_batch_size": 2} | training))
    text = json.loads(config.read_text())
    text["model"] |= {"model_max_length": 256} | others.get("model", {})
    text["data"]["train"] |= others.get("data", {})
    config.write_text(json.dumps(text))
    answer = {"role": "assistant", "content": "A long answer. " * 60}
    row = json.dumps({"messages": [{"role": "user", "content": "A question?"}, answer]})
    (folder / "rows.jsonl").write_text("\n".join([row] * 16))
    return config


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, int]]:
    """Return name -> configuration of a run, and what the run takes at its peak without libraries."""

    def make(folder: Path, name: str) -> Path:
        if name == "tiny":
            return configure(folder, QUICKSTART / "model", per_device_train_batch_size=1)
        return long_rows(folder, name)

    names = list(REAL) if request.config.getoption("exhaustive") else FEW
    return real_runs(tmp_path_factory.mktemp("real"), names, make)


@pytest.mark.slow
@ON_A_CPU
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", few_of(REAL, FEW))
def test_the_peak_is_that_of_a_real_run_within_a_fifth(name: str, real: dict[str, tuple[Path, int]]) -> None:
    config, peak = real[name]
    found = estimated(config).estimate_of_run
    assert found.peak_bytes > 200 * 2**20
    assert found.peak_bytes == pytest.approx(peak, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", REAL)
def test_the_peak_on_a_gpu_is_that_of_a_real_run_within_15_percent(tmp_path: Path, name: str) -> None:
    config = long_rows(tmp_path, name)
    found = estimated(config).estimate_of_run
    assert found.device == "cuda"
    loaded, catalogue = open_sound_config(str(config), ())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_training(loaded, resolve(loaded, catalogue))
    assert found.peak_bytes == pytest.approx(torch.cuda.max_memory_allocated() - before, rel=0.15)


def test_what_does_not_fit_is_said_with_the_largest_part_and_settings_that_would(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oumi_plugins.trainers._estimate as module

    flags = ("--training.per_device_train_batch_size=8", "--training.optimizer=sgd")
    plain, again = (estimated(config, *flags, *more).estimate_of_run for more in ((), (RECOMPUTED,)))
    assert again.peak_bytes < plain.peak_bytes
    monkeypatch.setattr(module, "free_memory", lambda: ("cpu", again.peak_bytes))
    largest, fitting = estimated(config, *flags).estimate_of_run.notes
    assert "The most is activations and logits: lower training.per_device_train_batch_size" in largest
    assert "it would fit with training.enable_gradient_checkpointing: true: " in fitting
    assert not estimated(config, *flags, RECOMPUTED).estimate_of_run.notes
    monkeypatch.setattr(module, "free_memory", lambda: ("cpu", 1000))
    assert "neither gradient checkpointing nor" in estimated(config, *flags).estimate_of_run.notes[1]


def test_gradients_that_are_freed_one_by_one_are_counted_so(config: Path) -> None:
    flags = ("--training.max_grad_norm=null", RECOMPUTED)
    at_once = estimated(config, *flags)
    one_by_one = estimated(config, *flags, "--training.trainer_kwargs.optimizer_in_backward")
    assert one_by_one.bytes_of("gradients") < at_once.bytes_of("gradients") / 2
    assert one_by_one.estimate_of_run.peak_bytes < at_once.estimate_of_run.peak_bytes
