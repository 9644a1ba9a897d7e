"""Parameter groups: what decays and what does not, and what each is.

Weights of layers decay. Norms, biases, embeddings and single vectors (scales, gates, magnitudes) do not: for them zero
is no simpler a model. What an adapter puts beside an embedding counts as an embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_LINEAR = ("Linear", "Conv1D")
"""In the names of classes of layers that multiply by a matrix, which may have a side of one."""
_DIRECT = ("norm", "embed")
"""In the names of classes whose own parameters do not decay."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return groups of the trainable parameters as (name, tensor).

    Their `kind` is `weights` within the model; `head`, the output layer; or `rest`, which does not decay. Optimizers
    that treat matrices in their own way read it.
    """
    exempt = {id(parameter) for parameter in _exempt(model)}
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore
    head = {id(parameter) for parameter in output.parameters()} if isinstance(output, nn.Module) else set[int]()
    kinds: dict[str, list[tuple[str, nn.Parameter]]] = {"weights": [], "head": [], "rest": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "rest" if id(parameter) in exempt else "head" if id(parameter) in head else "weights"
            kinds[kind].append((name, parameter))
    return [
        {"params": parameters, "weight_decay": 0.0 if kind == "rest" else weight_decay, "kind": kind}
        for kind, parameters in kinds.items()
        if parameters
    ]


def _exempt(model: nn.Module) -> Iterator[Tensor]:
    """Yield what does not decay; some of it more than once."""
    for module in model.modules():
        kind = type(module).__name__
        base = getattr(module, "get_base_layer", lambda: None)()  # that of one of peft's adapters
        if isinstance(base, nn.Embedding):
            yield from module.parameters()
        own = isinstance(module, nn.Embedding) or any(part in kind.lower() for part in _DIRECT)
        for name, parameter in module.named_parameters(recurse=False):
            is_weight = name == "weight" and parameter.ndim == 2 and any(part in kind for part in _LINEAR)
            if own or name == "bias" or name.endswith("_bias") or (_is_vector(parameter) and not is_weight):
                yield parameter


def _is_vector(parameter: Tensor) -> bool:
    """Return whether at most one side is longer than one."""
    return parameter.numel() == max(parameter.shape, default=1)
