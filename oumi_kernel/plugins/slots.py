"""Slots: which keys of a configuration name a component, and where its parameters stand.

Names are derived from the keys themselves (`fsdp.enable_fsdp` selects the strategy named `fsdp`), so that no
component's name is written here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from oumi_kernel.config import DatasetSplitParams, ModelParams, TrainingConfig, TrainingParams
from oumi_kernel.config.vocabulary import VOCABULARY
from oumi_kernel.plugins.families import DEFAULT, DISTRIBUTED
from oumi_kernel.schema import Params

SPLITS = ("train", "validation", "test")


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a configuration that names a component.

    Attributes:
        family: Whose component it names.
        name: The name, as written or derived.
        path: The key that names it.
        kwargs_path: The key that holds its parameters; empty where the section itself is the parameters.
        section: The section that is its parameters; None where `kwargs_path` holds them.
        falls_back: Whether a name that no component has goes to the family's default (hub ids).
    """

    family: str
    name: str
    path: str
    kwargs_path: str = ""
    section: Params | None = None
    falls_back: bool = False


def slots(config: TrainingConfig, *, peft: bool, world_size: int) -> Iterator[Slot]:
    """Yield the slots that a configuration fills, except collators, which a dataset may choose.

    Args:
        config: The configuration.
        peft: Whether parameter-efficient fine-tuning is on.
        world_size: Number of processes, which decides the strategy where the configuration names none.
    """
    training = config.training
    model = config.model
    yield Slot(family="models", name=model.model_name, path="model.model_name", section=model, falls_back=True)
    yield from _strategy(config, world_size)
    for split, index, name in _datasets(config):
        path = f"data.{split}.datasets[{index}]"
        yield Slot(
            family="datasets",
            name=name,
            path=f"{path}.dataset_name",
            kwargs_path=f"{path}.dataset_kwargs",
            falls_back=True,
        )
    yield _named("trainers", training.trainer_type, "trainer_type", "trainer_kwargs")
    yield _named("optimizers", training.optimizer, "optimizer", "optimizer_kwargs")
    yield _named("schedulers", training.lr_scheduler_type, "lr_scheduler_type", "lr_scheduler_kwargs")
    if training.metrics_function is not None:
        yield _named("metrics", training.metrics_function, "metrics_function", "metrics_kwargs")
    if peft:
        name = config.peft.peft_method or DEFAULT
        yield Slot(family="peft", name=name, path="peft.peft_method", kwargs_path="peft.peft_kwargs")
    for name in _enabled(model, "enable_{}_kernel"):
        yield Slot(family="kernels", name=name, path=f"model.enable_{name}_kernel", kwargs_path="model.kernel_kwargs")
    for name in model.kernels:
        yield Slot(family="kernels", name=name, path=f"model.kernels.{name}", kwargs_path=f"model.kernels.{name}")
    for name in sorted(VOCABULARY["trackers"]):
        if getattr(training, f"enable_{name}", False):
            key = f"training.tracker_kwargs.{name}"
            yield Slot(family="trackers", name=name, path=f"training.enable_{name}", kwargs_path=key)


def switch_of(family: str, names: Collection[str]) -> tuple[str, str]:
    """Return what turns a component on where no key has its name as the value, and the key of its parameters.

    Args:
        family: Its family.
        names: Its names in that family.

    Returns:
        Both as a configuration writes them, or a condition in words; empty where there is no such thing.
    """
    if family == "kernels":
        return next(
            (
                (f"model.enable_{name}_kernel: true", "model.kernel_kwargs")
                for name in names
                if f"enable_{name}_kernel" in ModelParams.__struct_fields__
            ),
            (f"model.kernels: {{{next(iter(names))}: {{}}}}", f"model.kernels.{next(iter(names))}"),
        )
    if family == "trackers":
        on = [name for name in names if f"enable_{name}" in TrainingParams.__struct_fields__]
        return (f"training.enable_{on[0]}: true", f"training.tracker_kwargs.{on[0]}") if on else ("", "")
    if family == "strategies":
        sections = [name for name in names if name in TrainingConfig.__struct_fields__]
        if sections:
            return f"{sections[0]}.enable_{sections[0]}: true", sections[0]
        return ("a run of one process", "") if DEFAULT in names else ("a run of several processes (--nproc)", "")
    if family == "models":
        return "model.model_name: a folder or a hub id" if DEFAULT in names else "model.model_name: its name", "model"
    return "being installed: it is always on", ""


def filled_splits(config: TrainingConfig) -> Iterator[tuple[str, DatasetSplitParams]]:
    """Yield (split name, split) for every split that has datasets."""
    for name in SPLITS:
        split: DatasetSplitParams = getattr(config.data, name)
        if split.datasets:
            yield name, split


def _named(family: str, name: str, key: str, kwargs: str) -> Slot:
    return Slot(family=family, name=name, path=f"training.{key}", kwargs_path=f"training.{kwargs}")


def _datasets(config: TrainingConfig) -> Iterator[tuple[str, int, str]]:
    for split, params in filled_splits(config):
        for index, dataset in enumerate(params.datasets):
            yield split, index, dataset.dataset_name


def _strategy(config: TrainingConfig, world_size: int) -> Iterator[Slot]:
    for field in config.__struct_fields__:
        section = getattr(config, field)
        if getattr(section, f"enable_{field}", False):
            yield Slot(family="strategies", name=field, path=f"{field}.enable_{field}", section=section)
            return
    name = DEFAULT if world_size == 1 else DISTRIBUTED
    yield Slot(family="strategies", name=name, path="", section=config.fsdp)


def _enabled(section: Params, pattern: str) -> Iterator[str]:
    start, end = pattern.split("{}")
    for key in section.__struct_fields__:
        if key.startswith(start) and key.endswith(end) and getattr(section, key):
            yield key.removeprefix(start).removesuffix(end)
