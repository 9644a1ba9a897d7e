"""The loop against an independent trainer, and against itself cut in other ways."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from oumi_kernel import CheckpointError, ConfigError, DataError, NumericsError, StopRequested
from oumi_plugins.trainers._order import epoch_order
from tests.conftest import QUICKSTART
from tests.trainers import reference_trainer
from tests.trainers.conftest import Finished, Train


def parameters(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_close(left, right, tolerance: float = 1e-5) -> None:
    expected = parameters(right)
    for name, found in parameters(left).items():
        torch.testing.assert_close(found, expected[name], rtol=tolerance, atol=1e-6, msg=name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return parameters(AutoModelForCausalLM.from_pretrained(folder))


def assert_equal(left: Path, right: Path) -> None:
    found, expected = weights(left), weights(right)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def oracle_rows(folder: Path, file: str = "train.jsonl") -> list[dict[str, list[int]]]:
    """Rows with the assistant's text and its end token supervised, found by hand in ChatML's text."""
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / "model")
    rows = []
    for line in (folder / file).read_text().splitlines():
        ids: list[int] = []
        labels: list[int] = []
        for turn in json.loads(line)["messages"]:
            header = tokenizer(f"<|im_start|>{turn['role']}\n", add_special_tokens=False)["input_ids"]
            body = tokenizer(f"{turn['content']}<|im_end|>", add_special_tokens=False)["input_ids"]
            newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
            ids += header + body + newline
            learn = turn["role"] == "assistant"
            labels += [-100] * len(header) + (body if learn else [-100] * len(body)) + [-100] * len(newline)
        rows.append({"input_ids": ids, "labels": labels})
    return rows


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_parameters_equal_the_reference_however_a_step_is_cut(
    train: Train, tmp_path: Path, batch: int, accumulation: int, smoothing: float
) -> None:
    run = train(
        f"--training.trainer_kwargs.label_smoothing_factor={smoothing}",
        f"--training.per_device_train_batch_size={batch}",
        f"--training.gradient_accumulation_steps={accumulation}",
        "--training.learning_rate=0.5",
        "--training.max_grad_norm=0.7",
    )
    rows = oracle_rows(tmp_path)
    ordered = [rows[index] for index in epoch_order(len(rows), 42, 0)]
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    losses = reference_trainer.train(
        model,
        [ordered],
        rows_per_step=8,
        optimizer=torch.optim.SGD(model.parameters(), 0.5),
        max_norm=0.7,
        smoothing=smoothing,
    )
    assert run.figures("loss") == pytest.approx(losses, rel=1e-5)
    assert_close(run.model, model)


def test_the_last_window_of_an_epoch_is_stepped_by_its_own_tokens(train: Train, tmp_path: Path) -> None:
    run = train(
        "--training.max_steps=-1",
        "--training.num_train_epochs=1",
        "--training.per_device_train_batch_size=1",
        "--training.gradient_accumulation_steps=4",
        "--training.max_grad_norm=null",
        rows=7,
    )
    rows = oracle_rows(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    reference_trainer.train(
        model,
        [[rows[index] for index in epoch_order(7, 42, 0)]],
        rows_per_step=4,
        optimizer=torch.optim.SGD(model.parameters(), 0.01),
    )
    assert run.summary.steps == 2
    assert_close(run.model, model)


def test_adamw_with_warmup_and_cosine_equals_torch_and_transformers(train: Train, tmp_path: Path) -> None:
    run = train(
        "--training.optimizer=adamw_torch_fused",
        "--training.lr_scheduler_type=cosine",
        "--training.warmup_steps=2",
        "--training.max_steps=6",
        "--training.weight_decay=0.1",
        "--training.max_grad_norm=null",
    )
    rows = oracle_rows(tmp_path)
    epochs = [[rows[index] for index in epoch_order(len(rows), 42, epoch)] for epoch in (0, 1)]
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    decays = [p for n, p in model.named_parameters() if "norm" not in n and "embed" not in n and "lm_head" not in n]
    exempt = {id(p) for p in model.parameters()} - {id(p) for p in decays}
    assert not model.config.tie_word_embeddings or model.lm_head.weight is model.model.embed_tokens.weight
    if not model.config.tie_word_embeddings:
        decays.append(model.lm_head.weight)
        exempt.discard(id(model.lm_head.weight))
    rest = [p for p in model.parameters() if id(p) in exempt]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    schedule = get_scheduler("cosine", optimizer, 2, 6)
    reference_trainer.train(model, epochs, rows_per_step=8, optimizer=optimizer, schedule=schedule)
    assert_close(run.model, model, 1e-4)
    assert run.figures("learning_rate")[:3] == pytest.approx([0.0, 0.005, 0.01])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_evaluation_loss_is_a_sum_over_a_count_whatever_the_batch(train: Train, tmp_path: Path, size: int) -> None:
    flags = (f"--training.per_device_eval_batch_size={size}", "--training.metrics_function=perplexity")
    run = train("--training.learning_rate=0", "--training.max_steps=1", *flags, validation=11)
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / "model")
    expected = reference_trainer.evaluate(model, oracle_rows(tmp_path, "validation.jsonl"))
    assert run.figures("eval_loss") == pytest.approx([expected], rel=1e-6)
    assert run.figures("eval_perplexity") == pytest.approx([float(torch.tensor(expected).exp())], rel=1e-5)


def test_evaluating_has_no_dropout_and_changes_nothing_about_training(train: Train, tmp_path: Path) -> None:
    flags = ("--model.model_kwargs.attention_dropout=0.3", "--training.max_steps=4")
    plain = train(*flags, name="plain")
    evaluated = train(*flags, "--training.eval_steps=1", name="evaluated", validation=5)
    assert_equal(evaluated.folder, plain.folder)
    model = evaluated.model.eval()
    expected = reference_trainer.evaluate(model, oracle_rows(tmp_path, "validation.jsonl"))
    assert evaluated.figures("eval_loss")[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_ends_with_the_same_bits(train: Train, stop: int) -> None:
    """Three steps are an epoch: stopped within the first, at its end, and within the second."""
    common = ("--training.optimizer=adamw", "--training.lr_scheduler_type=linear", "--training.logging_steps=2")
    dropout = "--model.model_kwargs.attention_dropout=0.2"
    straight = train(*common, dropout, "--training.max_steps=7", name="straight")
    train(*common, dropout, "--training.max_steps=7", f"--training.save_steps={stop}", name="stopped")
    folder = straight.folder.parent / "stopped"
    resumed = train(
        *common, dropout, "--training.max_steps=7", f"--training.resume_from_checkpoint={folder}/checkpoint-{stop}"
    )
    assert resumed.summary.steps == 7
    assert_equal(resumed.folder, straight.folder)
    entries = {entry["step"]: entry["loss"] for entry in straight.metrics}
    assert all(entries[entry["step"]] == entry["loss"] for entry in resumed.metrics)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(train: Train) -> None:
    first, second = train(name="first"), train(name="second")
    other = train("--training.data_seed=43", name="other")
    assert_equal(first.folder, second.folder)
    assert not all(
        torch.equal(a, b) for a, b in zip(weights(first.folder).values(), weights(other.folder).values(), strict=True)
    )


def test_workers_and_gradient_checkpointing_do_not_change_the_result(train: Train) -> None:
    plain = train(name="plain")
    workers = train("--training.dataloader_num_workers=2", "--training.dataloader_prefetch_factor=2", name="workers")
    checkpointed = train("--training.enable_gradient_checkpointing", name="checkpointed")
    assert_equal(workers.folder, plain.folder)
    assert_close(checkpointed.model, plain.model)


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_result(train: Train) -> None:
    plain = train("--training.max_steps=2", name="plain")
    compiled = train("--training.compile", "--training.max_steps=2", name="compiled")
    assert_close(compiled.model, plain.model, 1e-4)


def test_bf16_trains_float32_weights(train: Train) -> None:
    run = train("--training.mixed_precision_dtype=bf16", "--training.optimizer=adamw")
    plain = train("--training.optimizer=adamw", name="plain")
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert run.figures("loss") == pytest.approx(plain.figures("loss"), rel=0.02)
    assert run.figures("loss") != plain.figures("loss")


def test_fp16_on_a_cpu_is_refused_and_says_what_works(train: Train) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"fp16 needs a GPU.*Use bf16 or none"):
        train("--training.mixed_precision_dtype=fp16")


def test_a_loss_that_is_not_finite_ends_the_run(train: Train, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"is (nan|inf) at step \d+, learning rate"):
        train("--training.learning_rate=1e30", "--training.max_grad_norm=null", "--training.max_steps=20")
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert failure["exit_code"] == 3
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_asked_to_stop_it_leaves_a_complete_checkpoint_and_goes_on_from_there(train: Train, tmp_path: Path) -> None:
    from oumi_plugins.trainers import _loop

    straight = train("--training.optimizer=adamw", "--training.max_steps=6", name="straight")
    original = _loop.Loop._step
    calls = []

    def step_then_signal(self, window) -> None:
        original(self, window)
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    _loop.Loop._step = step_then_signal
    try:
        with pytest.raises(StopRequested, match="asked to stop at step 4") as stopped:
            train("--training.optimizer=adamw", "--training.max_steps=6")
    finally:
        _loop.Loop._step = original
    assert stopped.value.exit_code == 143
    resumed = train(
        "--training.optimizer=adamw", "--training.max_steps=6", "--training.try_resume_from_last_checkpoint"
    )
    assert resumed.summary.steps == 6
    assert_equal(resumed.folder, straight.folder)


@pytest.mark.parametrize("flag", ["--training.save_steps=0", "--training.save_steps=1"])
def test_weights_that_the_last_step_broke_are_never_kept(train: Train, tmp_path: Path, flag: str) -> None:
    flags = ("--training.optimizer=adamw_torch_fused", "--training.learning_rate=1e300", flag)
    with pytest.raises(NumericsError, match=r"the weight \S+ is not finite after step 1, learning rate 1e\+300"):
        train("--training.max_steps=1", *flags)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def complete(train: Train) -> Finished:
    return train("--training.save_steps=1", "--training.trainer_kwargs.save_total_limit=2")


def test_old_checkpoints_go_when_newer_ones_are_complete(train: Train) -> None:
    assert sorted(path.name for path in complete(train).folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_a_checkpoint_opens_with_plain_transformers(train: Train) -> None:
    run = complete(train)
    assert_equal(run.folder / "checkpoint-3", run.folder)
    assert (
        AutoTokenizer.from_pretrained(run.folder).chat_template
        == AutoTokenizer.from_pretrained(QUICKSTART / "model").chat_template
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json, so it was never completed"),
        (
            lambda folder: (folder / "optimizer.safetensors").write_bytes(b"x"),
            r"optimizer\.safetensors is missing or cut",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing or cut short"),
        (lambda folder: (folder / "scheduler.json").write_text("0" * 9), r"scheduler\.json"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_when_the_newest_is_asked_for(
    train: Train, damage, message: str
) -> None:
    run = complete(train)
    damage(run.folder / "checkpoint-3")
    with pytest.raises(CheckpointError, match=message):
        train(f"--training.resume_from_checkpoint={run.folder}/checkpoint-3", name="again")
    resumed = train("--training.try_resume_from_last_checkpoint")
    assert [entry["step"] for entry in resumed.metrics] == [1, 2, 3]


def test_nothing_to_train_on_after_truncation_is_an_error_with_the_smallest_limit(train: Train, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"0 of 24 rows have a supervised token after truncation \(max_length=4; the smallest"
    ):
        train("--model.model_max_length=4")
    assert json.loads((tmp_path / "run" / "failure.json").read_text())["exit_code"] == 4


def test_without_a_validation_split_one_line_says_that_nothing_is_evaluated(train: Train) -> None:
    line = "evaluation off: there is no validation split"
    assert line in (train(name="without").folder / "logs/rank_0.log").read_text()
    assert line not in (train(name="with", validation=4).folder / "logs/rank_0.log").read_text()
    assert line not in (train("--training.eval_strategy=no", name="no").folder / "logs/rank_0.log").read_text()
