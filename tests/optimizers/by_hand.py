"""Every optimizer twice: as the product builds it, and as its library is used by hand, without the product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import torch

from oumi_kernel.contracts import Run, World
from oumi_kernel.loading import load_text, split_overrides
from oumi_kernel.plugins import Kernel, resolve, scan
from tests.conftest import minimal_yaml

LR, BETAS, EPS, DECAY = 0.03, (0.8, 0.95), 1e-4, 0.1
SETTINGS = {
    "learning_rate": LR,
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "adam_epsilon": EPS,
    "sgd_momentum": 0.7,
    "lr_scheduler_type": "constant",
}
ADAM = {"lr": LR, "betas": BETAS, "eps": EPS}
SHAPES = {
    "weights": {"layer.a.weight": (64, 128), "layer.b.weight": (128, 64), "experts": (4, 16, 128)},
    "head": {"head.weight": (128, 64)},
    "rest": {"embed.weight": (128, 64), "norm.weight": (64,)},
}
"""Kind of a group -> its parameters; most of them large enough for a state of 8 bits."""
STEPS = 5

Tensors = dict[str, torch.nn.Parameter]
Optimizers = list[Any]


def tensors(seed: int = 0) -> Tensors:
    """Return the parameters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: shape for group in SHAPES.values() for name, shape in group.items()}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def gradients(step: int, parameters: Tensors) -> dict[str, torch.Tensor]:
    """Return the gradients of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(one.shape, generator=generator) for name, one in parameters.items()}


def groups_of(parameters: Tensors) -> list[dict[str, Any]]:
    """Return the groups that a trainer hands to the product."""
    return [
        {"params": [(name, parameters[name]) for name in names], "weight_decay": DECAY * (kind != "rest"), "kind": kind}
        for kind, names in SHAPES.items()
    ]


def build(name: str, groups: list[dict[str, Any]], *flags: str, world: World | None = None) -> Any:
    """Return the product's optimizer."""
    common = [f"--training.{key}={value}" for key, value in SETTINGS.items()]
    loaded = load_text(minimal_yaml(), "c", split_overrides([f"--training.optimizer={name}", *common, *flags])[0])
    resolution = resolve(loaded, scan())
    resolution.raise_for_problems(strict=True)
    return Kernel(resolution).build_optimizer(
        groups, Run(config=loaded.config, folder=loaded.folder, world=world or World())
    )


def step(optimizers: Optimizers, parameters: Tensors, at: int) -> None:
    """Take a step."""
    for name, gradient in gradients(at, parameters).items():
        parameters[name].grad = gradient
    for optimizer in optimizers:
        optimizer.step()


@contextmanager
def eager() -> Iterator[None]:
    """Let torchao compute without compiling, which takes a minute for all shapes."""
    with torch.compiler.set_stance("force_eager"):
        yield


def decayed(p: Tensors, *names: str) -> dict[str, Any]:
    return {"params": [p[name] for name in names], "weight_decay": DECAY}


def kept(p: Tensors) -> dict[str, Any]:
    return {"params": [p["embed.weight"], p["norm.weight"]], "weight_decay": 0.0}


def whole(p: Tensors) -> list[dict[str, Any]]:
    return [decayed(p, "layer.a.weight", "layer.b.weight", "experts", "head.weight"), kept(p)]


def weights(p: Tensors) -> list[dict[str, Any]]:
    return whole(p)[:1]


def torch_optimizer(name: str, **settings: Any) -> Callable[[Tensors], Optimizers]:
    return lambda p: [getattr(torch.optim, name)(whole(p), **settings)]


def bnb(kind: str, other: str, **settings: Any) -> Callable[[Tensors], Optimizers]:
    def make(p: Tensors) -> Optimizers:
        import bitsandbytes.optim

        small, large = getattr(bitsandbytes.optim, kind), getattr(bitsandbytes.optim, other)
        return [small(weights(p), **settings), large([kept(p)], **settings)]

    return make


def muon(p: Tensors) -> Optimizers:
    matrices = torch.optim.Muon(
        [decayed(p, "layer.a.weight", "layer.b.weight")], lr=LR, momentum=0.9, adjust_lr_fn="match_rms_adamw"
    )
    return [matrices, torch.optim.AdamW([decayed(p, "experts", "head.weight"), kept(p)], **ADAM, fused=True)]


def schedule_free(kind: str, **settings: Any) -> Callable[[Tensors], Optimizers]:
    def make(p: Tensors) -> Optimizers:
        import schedulefree

        optimizer = getattr(schedulefree, kind)(whole(p), **settings)
        optimizer.train()
        return [optimizer]

    return make


def low_rank(module: str, kind: str, *, proj: str = "random", **settings: Any) -> Callable[[Tensors], Optimizers]:
    def make(p: Tensors) -> Optimizers:
        library = __import__(module)
        own = {"rank": 8, "update_proj_gap": 2, "proj_type": "std"}
        own |= {"scale": 0.25} if "GaLore" in kind else {"scale": 1.0, "proj": proj, "scale_type": "channel"}
        matrices = decayed(p, "layer.a.weight", "layer.b.weight") | own
        return [getattr(library, kind)([matrices, decayed(p, "experts", "head.weight"), kept(p)], **settings)]

    return make


def torchao(kind: str) -> Callable[[Tensors], Optimizers]:
    def make(p: Tensors) -> Optimizers:
        import torchao.optim

        return [getattr(torchao.optim, kind)(whole(p), **ADAM)]

    return make


def adafactor(p: Tensors) -> Optimizers:
    import transformers

    return [transformers.Adafactor(whole(p), lr=LR, scale_parameter=False, relative_step=False)]


class Case(msgspec.Struct, frozen=True):
    """An optimizer, the flags that it is tried with, and the same by hand."""

    name: str
    by_hand: Callable[[Tensors], Optimizers]
    flags: tuple[str, ...] = ()
    needs: str = ""


def kwargs(text: str) -> tuple[str, ...]:
    return (f"--training.optimizer_kwargs={text}",)


_GAP = kwargs("{rank: 8, update_proj_gap: 2}")
_FIXED = {"lr": LR, "scale_parameter": False, "relative_step": False}
_MIX = {"lr": LR, "betas": (*BETAS, 0.99), "eps": EPS, "alpha": 3.0}
_LION = {"lr": LR, "betas": (0.8, 0.9)}
_RMS = {"lr": LR, "alpha": 0.9, "eps": 1e-8}
CASES = [
    Case("adam", torch_optimizer("Adam", **ADAM, fused=True)),
    Case("adamw", torch_optimizer("AdamW", **ADAM, fused=True)),
    Case("adamw_torch", torch_optimizer("AdamW", **ADAM, amsgrad=True, fused=True), kwargs("{amsgrad: true}")),
    Case("adamw_torch_fused", torch_optimizer("AdamW", **ADAM, fused=True), kwargs("{implementation: fused}")),
    Case("adamw", torch_optimizer("AdamW", **ADAM, foreach=True), kwargs("{implementation: foreach}")),
    Case("adamw", torch_optimizer("AdamW", **ADAM, foreach=False), kwargs("{implementation: single}")),
    Case("sgd", torch_optimizer("SGD", lr=LR, momentum=0.7)),
    Case("adafactor", adafactor),
    Case("adagrad", torch_optimizer("Adagrad", lr=LR, lr_decay=0.1), kwargs("{lr_decay: 0.1}")),
    Case("rmsprop", torch_optimizer("RMSprop", **_RMS, centered=True), kwargs("{alpha: 0.9, centered: true}")),
    Case("muon", muon, kwargs("{momentum: 0.9}")),
    Case("rmsprop_bnb", bnb("RMSprop32bit", "RMSprop32bit", **_RMS), kwargs("{alpha: 0.9}"), "bitsandbytes"),
    Case("rmsprop_bnb_8bit", bnb("RMSprop8bit", "RMSprop32bit", **_RMS), kwargs("{alpha: 0.9}"), "bitsandbytes"),
    Case("adamw_8bit", bnb("AdamW8bit", "AdamW32bit", **ADAM), (), "bitsandbytes"),
    Case("paged_adamw_8bit", bnb("PagedAdamW8bit", "PagedAdamW32bit", **ADAM), (), "bitsandbytes"),
    Case("paged_adamw", bnb("PagedAdamW32bit", "PagedAdamW32bit", **ADAM), (), "bitsandbytes"),
    Case("lion_32bit", bnb("Lion32bit", "Lion32bit", **_LION), kwargs("{beta1: 0.8, beta2: 0.9}"), "bitsandbytes"),
    Case("lion_8bit", bnb("Lion8bit", "Lion32bit", **_LION), kwargs("{beta1: 0.8, beta2: 0.9}"), "bitsandbytes"),
    Case("paged_lion_32bit", bnb("PagedLion32bit", "PagedLion32bit", lr=LR), (), "bitsandbytes"),
    Case("paged_lion_8bit", bnb("PagedLion8bit", "PagedLion32bit", lr=LR), (), "bitsandbytes"),
    Case("ademamix", bnb("AdEMAMix", "AdEMAMix", **_MIX), kwargs("{beta3: 0.99, alpha: 3}"), "bitsandbytes"),
    Case("ademamix_8bit", bnb("AdEMAMix8bit", "AdEMAMix", **_MIX), kwargs("{beta3: 0.99, alpha: 3}"), "bitsandbytes"),
    Case(
        "paged_ademamix_32bit",
        bnb("PagedAdEMAMix", "PagedAdEMAMix", **_MIX, t_alpha=3, t_beta3=3),
        kwargs("{beta3: 0.99, alpha: 3, t_alpha: 3, t_beta3: 3}"),
        "bitsandbytes",
    ),
    Case(
        "paged_ademamix_8bit",
        bnb("PagedAdEMAMix8bit", "PagedAdEMAMix", **_MIX),
        kwargs("{beta3: 0.99, alpha: 3}"),
        "bitsandbytes",
    ),
    Case("schedule_free_adamw", schedule_free("AdamWScheduleFree", **ADAM), (), "schedulefree"),
    Case("schedule_free_radam", schedule_free("RAdamScheduleFree", **ADAM), (), "schedulefree"),
    Case(
        "schedule_free_sgd",
        schedule_free("SGDScheduleFree", lr=LR, momentum=0.8, r=1.0),
        kwargs("{momentum: 0.8, r: 1}"),
        "schedulefree",
    ),
    Case("galore_adamw", low_rank("galore_torch", "GaLoreAdamW", **ADAM), _GAP, "galore_torch"),
    Case("galore_adafactor", low_rank("galore_torch", "GaLoreAdafactor", **_FIXED), _GAP, "galore_torch"),
    Case("apollo_adamw", low_rank("apollo_torch", "APOLLOAdamW", **ADAM), _GAP, "apollo_torch"),
    Case(
        "apollo_adamw",
        low_rank("apollo_torch", "APOLLOAdamW", proj="svd", **ADAM),
        kwargs("{rank: 8, update_proj_gap: 2, proj: svd}"),
        "apollo_torch",
    ),
    Case("adamw_torch_8bit", torchao("AdamW8bit"), (), "torchao"),
    Case("adamw_torch_4bit", torchao("AdamW4bit"), (), "torchao"),
    Case("adamw_torch_fp8", torchao("AdamWFp8"), (), "torchao"),
]


def every_optimizer() -> list[Any]:
    """Return the cases for `pytest.mark.parametrize`; the library of one that is not installed skips it."""
    return [pytest.param(case, id=" ".join((case.name, *case.flags)).replace("--training.", "")) for case in CASES]


def available(case: Case) -> None:
    """Skip a test whose library is not there."""
    if case.needs:
        pytest.importorskip(case.needs, reason=f"needs {case.needs}: pip install 'oumi-kernel[optimizers]'")


def optimizer_of(case: Case, parameters: Tensors) -> Any:
    """Return the product's optimizer of a case, ready to step."""
    optimizer = build(case.name, groups_of(parameters), *case.flags)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer
