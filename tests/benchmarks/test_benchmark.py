"""The benchmark's own parts, on a tiny model: what it trains on, how it watches, and which ratios it lets count."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from oumi_kernel.loading import load_config, split_overrides
from oumi_kernel.plugins import resolve, scan
from tests.benchmarks import held_out, long_runs, materials, methods, report, scaling
from tests.benchmarks.measure import Step, Watched, environment_for, rates, watch
from tests.benchmarks.variants import VARIANTS, Job, prepare
from tests.conftest import ROOT

BATCHES = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("materials")
    materials.build(folder, "tiny", rows=BATCHES * materials.BATCH)
    return folder


def run(name, tiny, output) -> Watched:
    job = prepare(VARIANTS[name], tiny, output, sys.executable)
    environment, _ = environment_for("1", output, VARIANTS[name].environment)
    return watch(job.command, job.lines, output / "output.log", environment, None)


def test_the_same_arguments_build_the_same_materials(tiny, tmp_path) -> None:
    materials.build(tmp_path, "tiny", rows=BATCHES * materials.BATCH)
    for name in ("train.jsonl", "in_order.jsonl", "held_out.jsonl", "model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes(), name


def test_about_half_of_a_padded_batch_is_padding_and_no_chat_is_too_long() -> None:
    tokenizer = materials.build_tokenizer(10**6)
    length = lambda chat: len(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])  # noqa: E731
    lengths = [length(chat) for chat in materials.build_chats("train", 240, materials.LONGEST, length)]
    assert max(lengths) <= materials.LONGEST
    assert 0.45 < materials.padding_share(lengths) < 0.57


def test_padding_is_what_the_longest_row_of_each_batch_adds() -> None:
    assert materials.padding_share([1, 3, 4, 4], size=2) == pytest.approx(1 - 12 / 14)


def test_full_chats_have_the_tokens_asked_for() -> None:
    length = lambda chat: sum(len(message["content"]) for message in chat)  # noqa: E731
    assert all(length(chat) >= 3000 for chat in materials.build_chats("train", 4, None, length, shortest=3000))


@pytest.mark.parametrize(("name", "millions"), [("small", 7.6), ("135m", 134.5)])
def test_the_shapes_have_the_parameters_they_say(name, millions) -> None:
    import torch

    with torch.device("meta"):
        model = materials.build_model(name, transformers.PreTrainedTokenizerFast(tokenizer_object=bare_tokenizer()))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def bare_tokenizer():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE())


def test_our_run_is_seen_step_by_step_and_reads_every_token(tiny, tmp_path) -> None:
    watched = run("ours", tiny, tmp_path)
    expected = json.loads((tiny / "materials.json").read_text())["tokens"]
    assert len(watched.steps) == BATCHES
    assert watched.steps[-1].tokens == expected
    clocks = [(step.wall, step.cpu) for step in watched.steps]
    assert clocks == sorted(clocks)
    assert watched.cpu >= watched.steps[-1].cpu > 0.5  # importing torch alone takes longer
    peaks = [step.peak_bytes for step in watched.steps]
    assert 100e6 < peaks[0] <= peaks[1] <= peaks[2] <= watched.peak_bytes
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_trainer_sees_the_same_batches_in_the_same_order(tiny, tmp_path) -> None:
    figures = {}
    for name in ("ours", "trainer"):
        watched = run(name, tiny, tmp_path / name)
        loss = held_out.held_out_loss(tiny, tmp_path / name)
        figures[name] = [{"steps": [step._asdict() for step in watched.steps], "held_out": loss}]
    assert [s["tokens"] for s in figures["ours"][0]["steps"]] == [s["tokens"] for s in figures["trainer"][0]["steps"]]
    assert report.problem("ours", figures) == ""


def test_the_held_out_loss_of_a_model_that_knows_nothing_is_that_of_a_guess(tiny) -> None:
    assert held_out.held_out_loss(tiny, tiny / "model") == pytest.approx(math.log(materials.VOCABULARY), abs=0.05)


def test_speed_leaves_the_first_steps_out() -> None:
    steps = [Step(10.0, 8.0, 100, 9.0), Step(12.0, 9.0, 300, 8.0), Step(14.0, 10.0, 500, 7.0)]
    figures = rates(Watched(steps, 11.0, 15.0, 2_000_000), warm=1)
    assert figures["tokens_per_cpu_second"] == 200
    assert figures["tokens_per_second"] == 100
    assert figures["first_step_cpu_seconds"] == 8


def test_a_run_that_fails_says_what_it_said_last(tmp_path) -> None:
    job = Job([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "lines", tmp_path)
    environment, _ = environment_for("1", tmp_path, {})
    with pytest.raises(RuntimeError, match="no such thing"):
        watch(job.command, job.lines, tmp_path / "log", environment, None)


def runs_of(losses, held_out_loss):
    return [{"steps": [{"loss": loss} for loss in losses], "held_out": held_out_loss, "tokens_per_cpu_second": 100.0}]


@pytest.mark.parametrize(
    ("losses", "held_out_loss", "why"),
    [
        ([9.0, 8.0], 6.0, ""),
        ([9.0, 8.002], 6.0, "other batches"),
        ([9.0], 6.0, "other batches"),
        ([9.0, 8.0], 6.1, "held-out loss differs by 1.7%"),
    ],
)
def test_a_ratio_counts_only_on_the_same_batches_and_with_equal_held_out_loss(losses, held_out_loss, why) -> None:
    runs = {"trainer": runs_of([9.0, 8.0], 6.0), "ours": runs_of(losses, held_out_loss)}
    assert why in report.problem("ours", runs)
    assert bool(report.problem("ours", runs)) == bool(why)
    assert report.ratio("ours", "trainer", runs, "tokens_per_cpu_second") == ("(1.00)" if why else "1.00")


def test_a_run_that_failed_has_no_ratio() -> None:
    runs = {"trainer": runs_of([9.0], 6.0), "ours": [{"error": "a\nValueError: too long\nb"}]}
    assert report.problem("ours", runs) == "failed: ValueError: too long"
    assert report.ratio("ours", "trainer", runs, "tokens_per_cpu_second") == "-"


def test_the_table_of_growth_shows_what_a_further_token_costs() -> None:
    """A start of 5 s and 2 ms a token: the second column of costs leaves the start out."""
    runs = [
        {"name": times, "rows": 8 * times, "tokens": 1000 * times, "run_cpu_seconds": 5 + 2.0 * times}
        | {"tokens_per_cpu_second": 500.0, "peak_megabytes": 1.0}
        for times in (1, 2, 4)
    ]
    *_, two, four = scaling.table("times", runs).splitlines()
    assert two.endswith("| 2.000 | 2.000 |")
    assert four.endswith("| 2.000 | 2.000 |")


def test_the_report_says_how_it_is_called() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.report", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")


def test_the_table_of_long_runs_shows_the_peak_when_a_step_was_done() -> None:
    steps = [Step(1.0, 1.0, 10, 9.0, peak) for peak in (100_000_000, 200_000_000, 300_000_000)]
    runs = {"ours": Watched(steps, 7.4, 9.0, 310_000_000), "trainer": Watched(steps[:3], 20.0, 30.0, 400_000_000)}
    _, _, second, third, end, cpu = long_runs.table(runs, [2, 3]).splitlines()
    assert second == "| 2 | 200 | 200 |"
    assert third == "| 3 | 300 | 300 |"
    assert end == "| end | 310 | 400 |"
    assert cpu == "| CPU s of the run | 7 | 20 |"


@pytest.mark.parametrize("method", methods.METHODS)
def test_the_command_of_every_method_is_a_sound_configuration(method: str, tmp_path: Path) -> None:
    command = methods.command_of(method, tmp_path, 7, tmp_path / "out")
    overrides, rest = split_overrides(command[4:])
    assert rest == [methods.RECIPE]
    loaded = load_config(ROOT / methods.RECIPE, overrides)
    assert resolve(loaded, scan()).problems == ()
    assert loaded.config.training.max_steps == 7


def test_the_table_of_methods_shows_what_a_run_left() -> None:
    steps = [Step(10.0, 5.0, 100, 4.0, 0), Step(20.0, 9.0, 300, 3.9, 0), Step(40.0, 12.0, 1300, 3.8, 0)]
    watched = Watched(steps, 12.4, 45.0, 2_000_000_000)
    line = methods.row("lora", {"model": {"trained": 4_884_480}}, 3.9761, [3.5, 3.2345], watched)
    assert line == "| lora | 4,884,480 | 3.976 | 3.235 | 2,000 | 50 | 12 |"
