"""Steps that are not finite: not taken, never hidden, traced to their rows; and which numbers are kept in float32."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oumi_kernel import ConfigError, NumericsError
from oumi_plugins.strategies._single import SingleStrategy
from oumi_plugins.trainers import _loop
from oumi_plugins.trainers._loop import Loop
from oumi_plugins.trainers._numerics import OVERFLOWS, _places
from oumi_plugins.trainers._order import epoch_order
from tests.conftest import QUICKSTART, Install
from tests.trainers import reference_trainer
from tests.trainers.conftest import Finished, Train
from tests.trainers.test_loop import oracle_rows

POISON = 1000
"""A token whose embedding is infinite: any row that holds it has a loss that is not finite."""
ROWS, STEP = 24, 8
DATASET = """
import json
from pathlib import Path

def token_rows(dataset_path: str):
    return [{"input_ids": row} for row in json.loads(Path(dataset_path).read_text())]
"""
SKIP = "--training.trainer_kwargs.on_nonfinite=skip"


@pytest.fixture(scope="module")
def poisoned_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an output layer of its own, so that an infinite embedding touches its own rows only."""
    folder = tmp_path_factory.mktemp("poisoned")
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.inf
    model.save_pretrained(folder)
    for file in (QUICKSTART / "model").glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def train_tokens(train: Train, install: Install, poisoned_model: Path, tmp_path: Path):
    """Return `start(rows, *flags)`: a run on rows of tokens, with embeddings that do not train."""
    install("oumi-token-rows", "1.0", {"oumi.datasets": {"token_rows": "token_rows:token_rows"}}, token_rows=DATASET)

    def start(rows: list[list[int]], *flags: str, name: str = "run") -> Finished:
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return train(
            f"--model.model_name={poisoned_model}",
            "--model.freeze_layers=[embed_tokens]",
            "--data.train.datasets[0].dataset_name=token_rows",
            f"--data.train.datasets[0].dataset_path={tmp_path / name}.json",
            "--data.train.collator_name=text_with_padding",
            "--training.optimizer=adamw",
            *flags,
            name=name,
        )

    return start


def token_rows(count: int = ROWS) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(10, 900) for _ in range(draw.randrange(5, 12))] for _ in range(count)]


def poisoned(rows: list[list[int]], *indices: int) -> list[list[int]]:
    return [[*row[:2], POISON, *row[3:]] if index in indices else row for index, row in enumerate(rows)]


def in_order(rows: list[list[int]]) -> list[list[int]]:
    """Arrange rows so that the first epoch sees them as they are given here."""
    arranged: list[list[int]] = [[]] * len(rows)
    for position, index in enumerate(epoch_order(len(rows), 42, 0)):
        arranged[index] = rows[position]
    return arranged


def row_of(step: int, position: int = 0) -> int:
    """Return a row that the given step of the first epoch sees."""
    return epoch_order(ROWS, 42, 0)[(step - 1) * STEP + position]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(left: Path, right: Path) -> None:
    found, expected = weights(left), weights(right)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def numbers(samples: list[str]) -> list[int]:
    """Return the numbers of samples such as `data.train, row 17`."""
    assert all(sample.startswith("data.train, ") for sample in samples)
    return [int(sample.rpartition(" ")[2]) for sample in samples]


def failure(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "failure.json").read_text())


WINDOWS = [("8", "1"), ("2", "4")]


def window(batch: str, accumulation: str) -> tuple[str, str]:
    return (
        f"--training.per_device_train_batch_size={batch}",
        f"--training.gradient_accumulation_steps={accumulation}",
    )


@pytest.mark.parametrize(("batch", "accumulation"), WINDOWS)
def test_one_bad_row_ends_the_run_before_its_step_and_is_named(
    train_tokens, tmp_path: Path, batch: str, accumulation: str
) -> None:
    bad = sorted((row_of(2, 1), row_of(2, 6)))
    with pytest.raises(NumericsError, match=r"the loss is nan at step 2, learning rate 0\.01; it was not taken"):
        train_tokens(poisoned(token_rows(), *bad), *window(batch, accumulation), "--training.save_steps=1")
    record = failure(tmp_path / "run")
    assert record["exit_code"] == 3
    assert record["details"]["step"] == 2
    assert sorted(numbers(record["details"]["samples"])) == bad
    entries = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["skipped"]) for entry in entries] == [(1, 0), (2, 1)]
    assert entries[0]["loss"] > 0
    assert entries[1]["loss"] is None
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1"]
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.parametrize(("batch", "accumulation"), WINDOWS)
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_torch_fused", "sgd"])
def test_a_skipped_step_leaves_the_bits_of_a_run_that_never_had_it(
    train_tokens, batch: str, accumulation: str, optimizer: str
) -> None:
    flags = (*window(batch, accumulation), f"--training.optimizer={optimizer}", "--training.save_steps=2")
    rows = token_rows()
    skipping = train_tokens(in_order(poisoned(rows, 9, 14)), SKIP, *flags, "--training.save_steps=3", name="skipping")
    without = train_tokens(in_order(rows[:8] + rows[16:]), *flags, "--training.max_steps=2", name="without")
    assert_equal(skipping.folder, without.folder)
    left, right = (
        load_file(run.folder / f"checkpoint-{step}/optimizer.safetensors")
        for run, step in ((skipping, 3), (without, 2))
    )
    assert all(torch.equal(left[name], right[name]) for name in right)
    first, second = without.figures("loss")
    assert [entry["loss"] for entry in skipping.metrics] == [first, None, second]
    assert [entry["grad_norm"] for entry in skipping.metrics][1] is None
    assert [entry["skipped"] for entry in skipping.metrics] == [0, 1, 1]
    assert skipping.summary.steps == 3


def test_the_logged_loss_is_that_of_the_steps_taken_alone(train_tokens) -> None:
    rows = token_rows()
    once = ("--training.logging_steps=3", "--training.per_device_train_batch_size=8")
    skipping = train_tokens(in_order(poisoned(rows, 12)), SKIP, *once, name="skipping")
    without = train_tokens(
        in_order(rows[:8] + rows[16:]), "--training.logging_steps=2", "--training.max_steps=2", name="without"
    )
    assert skipping.figures("loss") == without.figures("loss")
    assert [entry["skipped"] for entry in skipping.metrics] == [1]


def test_a_skipped_step_is_a_step_of_the_plan_and_its_rate_is_passed(train_tokens) -> None:
    run = train_tokens(poisoned(token_rows(), row_of(2)), SKIP, "--training.lr_scheduler_type=linear")
    assert run.figures("learning_rate") == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3])
    assert run.summary.steps == 3


def test_the_log_names_the_row_of_every_skipped_step(train_tokens, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "oumi_plugins"):
        train_tokens(poisoned(token_rows(), row_of(1), row_of(3)), SKIP)
    lines = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert [f" {row_of(step)}. Skipped" in line for step, line in zip((1, 3), lines, strict=True)] == [True] * 2
    assert "Skipped: 2, of at most 3." in lines[1]


@pytest.mark.parametrize(("limit", "step"), [("0", 1), ("1", 2), ("null", 5)])
def test_one_more_than_the_limit_ends_the_run(train_tokens, tmp_path: Path, limit: str, step: int) -> None:
    bad = [row_of(number) for number in (1, 2, 3)]
    flags = (SKIP, f"--training.trainer_kwargs.max_skipped_steps={limit}", "--training.max_steps=6")
    with pytest.raises(NumericsError, match=f"at step {step}, "):
        train_tokens(poisoned(token_rows(), *bad), *flags)
    record = failure(tmp_path / "run")
    assert (record["exit_code"], record["details"]["step"]) == (3, step)
    epoch, within = divmod(step - 1, 3)  # the second epoch has its own order, whose first step sees none of the rows
    seen = epoch_order(ROWS, 42, epoch)[within * STEP : (within + 1) * STEP]
    assert numbers(record["details"]["samples"]) == [row for row in seen if row in bad]


@pytest.mark.parametrize("on_device", [False, True])
def test_a_run_that_goes_on_remembers_what_it_skipped(
    train_tokens, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    rows = poisoned(token_rows(), row_of(1), row_of(3))
    one = (SKIP, "--training.trainer_kwargs.max_skipped_steps=1")
    first = train_tokens(rows, *one, "--training.max_steps=2", "--training.save_steps=2")
    assert first.metrics[-1]["skipped"] == 1
    loops = remember(monkeypatch)
    if on_device:
        monkeypatch.setattr(_loop, "FREE", frozenset())
    go_on = f"--training.resume_from_checkpoint={first.folder}/checkpoint-2"
    with pytest.raises(NumericsError, match=r"one more than training\.trainer_kwargs\.max_skipped_steps \(1\) allows"):
        train_tokens(rows, *one, go_on, "--training.max_steps=6", "--training.logging_steps=6", name="on")
    expected = weights(first.folder / "checkpoint-2")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loops[0].model.state_dict().items())


def test_a_limit_without_skipping_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match=r"max_skipped_steps: needs on_nonfinite: skip"):
        train("--training.trainer_kwargs.max_skipped_steps=5")


def remember(monkeypatch: pytest.MonkeyPatch) -> list[Loop]:
    """Keep every loop, so that a test sees the weights of a run that ended with an error."""
    loops: list[Loop] = []
    original = Loop.train
    monkeypatch.setattr(Loop, "train", lambda self: (loops.append(self), original(self))[1])
    return loops


@pytest.mark.parametrize("on_device", [False, True])
def test_a_stopped_run_has_the_weights_of_its_last_good_step_whenever_it_is_found_out(
    train_tokens, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    """As on an accelerator, where nobody looks before a log entry is due: steps after the lost one are not taken."""
    before = train_tokens(in_order(token_rows()), "--training.max_steps=1", name="before")
    loops = remember(monkeypatch)
    if on_device:
        monkeypatch.setattr(_loop, "FREE", frozenset())
    with pytest.raises(
        NumericsError,
        match=r"at step 2, .*Samples whose own loss is not finite: data\.train, \w+ \d+\. Correct or remove",
    ):
        train_tokens(in_order(poisoned(token_rows(), 12)), "--training.logging_steps=5", "--training.max_steps=7")
    (loop,) = loops
    assert loop.progress.step == (5 if on_device else 2)
    expected = weights(before.folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loop.model.state_dict().items())


def test_looking_late_changes_nothing_but_when_it_is_known(train_tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with dropout: the search for the rows draws no random number."""
    rows, dropout = poisoned(token_rows(), row_of(2)), "--model.model_kwargs.attention_dropout=0.3"
    flags = (SKIP, "--training.logging_steps=3", "--training.max_steps=6", dropout)
    now = train_tokens(rows, *flags, name="now")
    monkeypatch.setattr(_loop, "FREE", frozenset())
    late = train_tokens(rows, *flags, name="late")
    assert_equal(now.folder, late.folder)
    keys = ("step", "loss", "skipped", "learning_rate")
    assert [[e[key] for key in keys] for e in now.metrics] == [[e[key] for key in keys] for e in late.metrics]
    assert now.metrics[-1]["skipped"] == 2  # the row comes again in the second epoch


@pytest.fixture
def infinite_gradients(monkeypatch: pytest.MonkeyPatch):
    """Return `make(steps)`: the gradient of these steps is infinite, their loss is not."""

    def make(*steps: int) -> None:
        original, calls = SingleStrategy.step, []

        def step(self, max_norm, loss=None):
            calls.append(1)
            if len(calls) in steps:
                next(p for p in self._prepared.model.parameters() if p.grad is not None).grad.view(-1)[0] = torch.inf
            return original(self, max_norm, loss)

        monkeypatch.setattr(SingleStrategy, "step", step)

    return make


def test_where_only_the_gradient_is_not_finite_all_rows_of_the_step_are_listed(
    train_tokens, tmp_path: Path, infinite_gradients
) -> None:
    infinite_gradients(3)
    with pytest.raises(NumericsError, match=r"the gradient norm is inf at step 3, .*the loss of each is finite"):
        train_tokens(token_rows())
    details = failure(tmp_path / "run")["details"]
    assert numbers(details["samples"]) == [row_of(3, position) for position in range(STEP)]


def as_in_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the guard take overflows as in fp16, which a CPU cannot run."""
    from oumi_plugins.trainers._numerics import Guard

    original = Guard.__init__

    def init(self, *arguments) -> None:
        original(self, *arguments)
        self._fp16 = True

    monkeypatch.setattr(Guard, "__init__", init)


def test_an_overflow_in_fp16_is_counted_and_logged_and_no_error(
    train_tokens, monkeypatch: pytest.MonkeyPatch, infinite_gradients, caplog: pytest.LogCaptureFixture
) -> None:
    as_in_fp16(monkeypatch)
    infinite_gradients(1, 2)
    with caplog.at_level(logging.INFO, "oumi_plugins"):
        run = train_tokens(token_rows())
    assert [entry["skipped"] for entry in run.metrics] == [1, 2, 2]
    assert [entry["loss"] is None for entry in run.metrics] == [True, True, False]
    assert sum("overflowed in fp16" in message for message in caplog.messages) == 2


def test_overflows_without_end_are_an_error_in_fp16_too(
    train_tokens, monkeypatch: pytest.MonkeyPatch, infinite_gradients
) -> None:
    as_in_fp16(monkeypatch)
    infinite_gradients(*(step for step in range(1, 60) if step != 9))
    with pytest.raises(NumericsError, match=f"the gradient norm is inf at step {9 + OVERFLOWS + 1}, "):
        train_tokens(token_rows(), "--training.max_steps=50")


def test_a_lost_loss_is_no_overflow_in_fp16(train_tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    as_in_fp16(monkeypatch)
    with pytest.raises(NumericsError, match="the loss is nan at step 2, "):
        train_tokens(poisoned(token_rows(), row_of(2)))


def test_a_sample_is_named_by_the_rows_that_it_was_made_of_where_they_are_known() -> None:
    class Packed(list[int]):
        def sources(self, index: int) -> list[int]:
            return [2 * index, 2 * index + 1]

    assert _places(Packed(), 4) == ["data.train, row 8", "data.train, row 9"]
    assert _places([0, 0], 1) == ["data.train, example 1"]


@pytest.mark.parametrize(("batch", "accumulation"), [*WINDOWS, ("1", "8")])
def test_the_logged_norm_is_that_of_the_whole_gradient_before_clipping(
    train: Train, tmp_path: Path, batch: str, accumulation: str
) -> None:
    limit, rate = 0.05, 0.01
    run = train(*window(batch, accumulation), f"--training.max_grad_norm={limit}", "--training.max_steps=1")
    rows = oracle_rows(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = [reference_trainer.row_loss(model, *rows[i].values()) for i in epoch_order(len(rows), 42, 0)[:8]]
    (sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)).backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert run.figures("grad_norm") == pytest.approx([float(gradients.norm())], rel=1e-4)
    assert float(gradients.norm()) > 2 * limit
    moved = torch.cat([(run.model.get_parameter(name) - before).flatten() for name, before in start.items()])
    assert float(moved.norm()) == pytest.approx(rate * limit, rel=1e-3)
    torch.testing.assert_close(
        moved / moved.norm(), -gradients / gradients.norm(), rtol=0, atol=2e-4
    )  # the same direction: one ratio for all


def dtypes(file: Path) -> set[str]:
    with safe_open(file, "pt") as tensors:
        return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 - no mapping


def norms_moved(folder: Path) -> list[bool]:
    found, before = weights(folder), weights(QUICKSTART / "model")
    names = [name for name in before if "norm" in name]
    assert names
    return [not torch.equal(found[name], before[name].to(found[name].dtype)) for name in names]


SMALL = ("--training.learning_rate=1e-5", "--training.save_steps=3")


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adam", "adafactor"])
def test_bf16_keeps_weights_and_optimizer_in_float32_so_that_small_updates_count(train: Train, optimizer: str) -> None:
    run = train(*SMALL, "--training.mixed_precision_dtype=bf16", f"--training.optimizer={optimizer}")
    assert dtypes(run.folder / "model.safetensors") == {"F32"}
    assert dtypes(run.folder / "checkpoint-3/model.safetensors") == {"F32"}
    assert dtypes(run.folder / "checkpoint-3/optimizer.safetensors") == {"F32"}
    assert all(norms_moved(run.folder))


def test_bfloat16_weights_lose_small_updates_and_the_log_says_so(train: Train) -> None:
    run = train(*SMALL, "--model.torch_dtype_str=bfloat16", "--training.optimizer=adamw_torch")
    assert dtypes(run.folder / "model.safetensors") == {"BF16"}
    assert not any(norms_moved(run.folder))
    assert "small updates are lost" in (run.folder / "logs/rank_0.log").read_text()


@pytest.mark.parametrize(
    ("name", "saved"), [("float32", "F32"), ("bfloat16", "BF16"), ("float64", "F64"), ("auto", "F32")]
)
def test_weights_are_trained_and_kept_in_the_format_that_was_asked_for(train: Train, name: str, saved: str) -> None:
    run = train(f"--model.torch_dtype_str={name}", "--training.save_steps=3", "--training.optimizer=adamw")
    assert dtypes(run.folder / "model.safetensors") == {saved}
    moments = load_file(run.folder / "checkpoint-3/optimizer.safetensors")
    assert {tensor.dtype for key, tensor in moments.items() if "exp_avg" in key} == {
        weights(run.folder)["model.norm.weight"].dtype
    }
