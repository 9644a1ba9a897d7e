"""AdaLoRA's ranks while it trains: the library's allocator between the steps of an optimizer, and in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from oumi_kernel import CheckpointError, ConfigError, Problem

FILE = "adalora.safetensors"
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the library's allocator remembers of each weight."""


def check_schedule(params: Any, total_steps: int) -> None:
    """Refuse ranks that do not shrink, or no steps in which they could.

    Raises:
        ConfigError: It is so.
    """
    key = message = ""
    if params.target_r >= params.init_r:
        key, message = "init_r", f"is {params.init_r}; ranks shrink from it to target_r, {params.target_r}."
    elif max(params.tinit, 1) >= total_steps - params.tfinal:  # the first step only measures
        key = "tinit"
        message = f"{params.tinit} steps before ranks shrink and {params.tfinal} after leave none of {total_steps}."
    if message:
        raise ConfigError(Problem(code="rule", path=f"peft.peft_kwargs.{key}", message=message))


class Allocation:
    """The allocator of one model, and how it goes on."""

    def __init__(self, model: Any) -> None:
        """Take the library's model."""
        self._model, self._step = model, 0

    def begin(self, optimizer: Any, step: int) -> None:
        """Follow the steps of an optimizer, of which `step` are done."""
        self._step = step
        optimizer.register_step_pre_hook(lambda *_: self._keep_orthogonal())
        optimizer.register_step_post_hook(lambda *_: self._allocate())

    def save(self, directory: Path) -> None:
        """Write every weight of the adapter, also those that are left out now, and the allocator's memory.

        Raises:
            CheckpointError: It cannot be written.
        """
        tensors = {f"weight:{name}": weight.detach().contiguous() for name, weight in self._weights().items()}
        for kind in SCORES:
            scores = getattr(self._allocator, kind)
            tensors |= {f"{kind}:{name}": score.contiguous() for name, score in scores.items()}
        for name, kept in (self._config.rank_pattern or {}).items():
            tensors[f"rank:{name}"] = torch.tensor(kept)
        try:
            save_file(tensors, directory / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write {directory / FILE}: {error}.") from error

    def load(self, directory: Path) -> None:
        """Read it back.

        Raises:
            CheckpointError: It is missing or damaged, or that of another adapter.
        """
        try:
            tensors = load_file(directory / FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / FILE} cannot be read: {error}") from error
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(":")
            found.setdefault(kind, {})[name] = tensor
        weights, saved = self._weights(), found.get("weight", {})
        if {name: weight.shape for name, weight in weights.items()} != {n: t.shape for n, t in saved.items()}:
            raise CheckpointError(f"{directory / FILE} is of another adapter.")
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(saved[name])
        for kind in SCORES:
            scores = {name: score.to(weights[name].device) for name, score in found.get(kind, {}).items()}
            setattr(self._allocator, kind, scores)
        self._config.rank_pattern = {name: kept.tolist() for name, kept in found.get("rank", {}).items()} or None

    @property
    def _config(self) -> Any:
        return self._model.active_peft_config

    @property
    def _allocator(self) -> Any:
        return self._model.base_model.rankallocator

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return what trains, by the names that the allocator uses."""
        inner = self._model.base_model.model
        return {name: weight for name, weight in inner.named_parameters() if weight.requires_grad}

    def _keep_orthogonal(self) -> None:
        """Add the gradient of the library's term: the mean distance of each matrix's Gram matrix from the identity."""
        weights = self._weights()
        pairs = [(name, weight) for name, weight in weights.items() if ".lora_A." in name or ".lora_B." in name]
        with torch.enable_grad():
            grams = [weight @ weight.T if ".lora_A." in name else weight.T @ weight for name, weight in pairs]
            distances = [torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
            (self._config.orth_reg_weight * torch.stack(distances).mean()).backward()

    def _allocate(self) -> None:
        self._step += 1
        self._model.base_model.update_and_allocate(self._step)
