"""DeepSpeed before any process meets another: what it is told, what is refused, and what a dry run says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from oumi_kernel import ConfigError
from oumi_kernel.contracts import Run, World
from oumi_kernel.loading import load_text
from oumi_kernel.plugins import resolve, scan
from oumi_plugins.strategies._elementwise import is_elementwise
from tests.conftest import minimal_yaml

pytest.importorskip("deepspeed", reason="needs the extra deepspeed")


def strategy(deepspeed: str, training: str = "  seed: 7\n", model: str = "", folder: Path | None = None) -> Any:
    from oumi_plugins.strategies._deepspeed import DeepSpeedStrategy

    text = minimal_yaml(training=training, model=model, deepspeed=f"  enable_deepspeed: true\n{deepspeed}")
    loaded = load_text(text, "c")
    run = Run(config=loaded.config, folder=folder or loaded.folder, world=World(size=2), rehearsal=True)
    return DeepSpeedStrategy(loaded.config.deepspeed, run)


def from_file(folder: Path, written: dict[str, Any], training: str = "  seed: 7\n") -> Any:
    (folder / "zero.json").write_text(json.dumps(written))
    return strategy("  deepspeed_config_path: ./zero.json\n", training, folder=folder)


def test_deepspeed_is_told_the_section_and_what_training_says() -> None:
    training = "  per_device_train_batch_size: 3\n  gradient_accumulation_steps: 5\n  max_grad_norm: 0.5\n"
    settings = strategy("  zero_stage: ZERO_3\n  sub_group_size: 77\n  overlap_comm: true\n", training)._settings
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["sub_group_size"] == 77
    assert settings["zero_optimization"]["overlap_comm"] is True
    assert "allgather_bucket_size" not in settings["zero_optimization"]
    own = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 5, "gradient_clipping": 0.5}
    assert own.items() <= settings.items()


def test_its_log_is_made_quiet_without_touching_the_handlers_of_others() -> None:
    logger, handler = logging.getLogger("DeepSpeed"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        strategy("  zero_stage: ZERO_3\n")
    finally:
        logger.removeHandler(handler)
    assert handler.level == logging.NOTSET
    assert not logger.isEnabledFor(logging.WARNING)


def test_a_file_may_repeat_what_training_says_or_say_auto(tmp_path: Path) -> None:
    written = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 5e-5, "betas": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    }
    settings = from_file(tmp_path, written)._settings
    assert settings["zero_optimization"] == {"stage": 2, "memory_efficient_linear": False}
    assert settings["bf16"] == {"enabled": False}
    assert not {"optimizer", "scheduler", "train_batch_size"} & settings.keys()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"train_batch_size": 32}, r"zero\.json: train_batch_size: 32 differs from .*, 16"),
        ({"gradient_accumulation_steps": 4}, r"gradient_accumulation_steps: 4 differs from training\.gradient_acc"),
        ({"gradient_clipping": 2.0}, r"gradient_clipping: 2\.0 differs from training\.max_grad_norm, 1\.0"),
        (
            {"optimizer": {"params": {"lr": 1e-3}}},
            r"optimizer\.params\.lr: 0\.001 differs from training\.learn",
        ),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer\.type: Lamb differs from training\.optimizer"),
        (
            {"scheduler": {"params": {"warmup_num_steps": 3}}},
            r"scheduler\.params\.warmup_num_steps: 3 would be ign",
        ),
        ({"fp16": {"enabled": True}}, r"fp16, while training\.mixed_precision_dtype is none"),
        ({"zero_optimisation": {"stage": 2}}, r"zero_optimisation: is not served"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, r"zero_quantized_weights: is not served"),
        ({"zero_optimization": {"stage": 2, "stagee": 3}}, r"zero_optimization\.stagee"),
        ({"zero_optimization": {"stage": 7}}, r"zero_optimization\.stage"),
    ],
)
def test_what_a_file_says_otherwise_is_refused_with_its_key(
    tmp_path: Path, written: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        from_file(tmp_path, written)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text("{")
    with pytest.raises(ConfigError, match=r"deepspeed_config_path: .*zero\.json cannot be read as JSON"):
        strategy("  deepspeed_config_path: ./zero.json\n", folder=tmp_path)


def test_fp16_is_said_in_both_places() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed\.precision: fp16, while .* is none"):
        strategy("  zero_stage: ZERO_1\n  precision: FP16\n")


def test_nvme_is_for_the_last_stage() -> None:
    with pytest.raises(ConfigError, match=r"offload_optimizer\.device: NVMe is for ZERO_3"):
        strategy("  zero_stage: ZERO_2\n  offload_optimizer:\n    device: NVME\n")


def build(kind: type[torch.optim.Optimizer], **settings: Any) -> Any:
    def make(model: nn.Module) -> tuple[Any, Any]:
        optimizer = kind(list(model.named_parameters()), **settings)  # pyright: ignore
        return optimizer, None

    return make


@pytest.mark.parametrize(
    ("stage", "optimizer", "settings", "message"),
    [
        (1, torch.optim.Adafactor, {}, r"training\.optimizer: .* looks at whole weights"),
        (3, torch.optim.Muon, {}, r"training\.optimizer: .* looks at whole weights"),
        (2, torch.optim.Adagrad, {}, r"training\.optimizer"),
        (0, torch.optim.Adafactor, {}, ""),
        (2, torch.optim.AdamW, {"lr": 0.0}, ""),
        (3, torch.optim.SGD, {"momentum": 0.9}, ""),
    ],
)
def test_an_optimizer_of_whole_weights_is_refused(
    stage: int, optimizer: Any, settings: dict[str, Any], message: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    rehearsal = strategy(f"  zero_stage: ZERO_{stage}\n")
    if not message:
        assert type(rehearsal.prepare(model, build(optimizer, **settings)).optimizer) is optimizer
        return
    with pytest.raises(ConfigError, match=message):
        rehearsal.prepare(model, build(optimizer, **settings))


def test_an_optimizer_is_left_as_it_was_when_it_is_asked() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = optimizer.state_dict()
    assert is_elementwise(optimizer, torch.device("cpu"))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["exp_avg"], before["state"][0]["exp_avg"])
    assert optimizer.param_groups[0]["params"][0] is model.weight


def test_the_last_stage_refuses_quantised_weights_and_the_first_sixteen_bits() -> None:
    packed = nn.Linear(4, 4)
    packed.register_parameter("packed", nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False))

    def of_weights(model: nn.Module) -> tuple[Any, Any]:
        return torch.optim.AdamW([(n, p) for n, p in model.named_parameters() if p.requires_grad]), None

    with pytest.raises(ConfigError, match=r"ZERO_3 cannot divide quantised weights.*ZERO_2"):
        strategy("  zero_stage: ZERO_3\n").prepare(packed, of_weights)
    with pytest.raises(ConfigError, match=r"ZERO_0 nothing keeps a float32 copy"):
        strategy("  zero_stage: ZERO_0\n").prepare(nn.Linear(4, 4).bfloat16(), of_weights)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "deepspeed" else found(name, *a))
    loaded = load_text(minimal_yaml(deepspeed="  enable_deepspeed: true\n"), "c")
    problems = [str(problem) for problem in resolve(loaded, scan(), world_size=2).unavailable]
    assert any("pip install 'oumi-kernel[deepspeed]'" in problem for problem in problems)
