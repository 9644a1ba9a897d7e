"""What each process holds and sends under a strategy: formulae of numbers of bytes, without a model's numbers.

With N processes, the operations are those of rings, in which a process sends no more than it must (Patarasuk and Yuan,
"Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009): all-gather and reduce-scatter of B bytes
send (N - 1) / N B, all-reduce, which is both, twice as much. Who gathers what, and how often, is in "ZeRO: Memory
Optimizations Toward Training Trillion Parameter Models" (arXiv 1910.02054), section 7, and "PyTorch FSDP" (arXiv
2304.11277), section 3; where DeepSpeed does otherwise, its code counts (0.19).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from oumi_kernel.contracts import World
from oumi_kernel.rehearsal import Amount, Division, Exchange


class Unit(NamedTuple):
    """Weights that are gathered together: their bytes in the number formats in which it is done.

    Attributes:
        weights: Of the weights as they are gathered, and compute.
        computed: Of the gradients of those that train, as they are computed.
        gradients: Of these gradients as they are sent.
    """

    weights: int
    computed: int
    gradients: int


class Often(NamedTuple):
    """How often an exchange is done in a step."""

    micro_batches: int = 1

    def __str__(self) -> str:
        """Return it in words."""
        return "once" if self.micro_batches == 1 else f"in each of {self.micro_batches} micro-batches"


def sizes_of(
    model: nn.Module, modules: Iterable[nn.Module] = (), weights_in: str = "", gradients_in: str = ""
) -> list[Unit]:
    """Return the sizes of units of sharding; the last is what lies in none of the modules, such as embeddings.

    Args:
        model: The model without weights; a parameter of several modules counts once.
        modules: Those that are units of their own, each before one that holds it.
        weights_in: Number format in which weights are gathered; empty: in their own.
        gradients_in: That in which gradients are exchanged; empty: in that of the weights.
    """
    seen: set[int] = set()
    units: list[Unit] = []
    for module in (*modules, model):
        own = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in own}
        trained = [parameter for parameter in own if parameter.requires_grad]
        sent = _bytes(trained, gradients_in or weights_in)
        units.append(Unit(_bytes(own, weights_in), _bytes(trained, weights_in), sent))
    return units


def replicated(model: Unit, world: World) -> Division:
    """Return the division of DDP, ZeRO 0 and NO_SHARD: none. Gradients are summed after the last micro-batch."""
    return Division(traffic=_sent(_all_reduce("gradients", model.gradients, world, Often())))


def zero(stage: int, model: Unit, world: World, micro_batches: int, *, bucket_bytes: int, live_bytes: int) -> Division:
    """Return the division of DeepSpeed's ZeRO.

    Stages 1 and 2 send gradients by all-reduce, a bucket at a time, of which each process keeps its part: half as much
    again as the reduce-scatter of the paper would. From stage 2 on each micro-batch is exchanged, as nobody keeps what
    belongs to others.

    Args:
        stage: 1, 2 or 3.
        model: All of the model, in the number format in which it computes.
        world: How many processes there are.
        micro_batches: Micro-batches of a step.
        bucket_bytes: Gradients that are sent together (`reduce_bucket_size`): there is a buffer of them, and a copy.
        live_bytes: Most gathered weights at a time in stage 3 (`stage3_max_live_parameters`).
    """
    size, often = world.size, Often(micro_batches)
    buckets = Amount(what="buckets", bytes=2 * min(bucket_bytes, model.gradients), how="of gradients, and a copy")
    if stage == 3:
        here = Amount(what="gathered weights", bytes=min(live_bytes, model.weights), how="as many as may be there")
        return Division(
            weights=size,
            gradients=size,
            optimizer_state=size,
            float32_copies=True,
            parts=(here, buckets),
            traffic=_sent(
                _all_gather("weights", model.weights, world, often),
                _all_gather("weights again", model.weights, world, often),
                _reduce_scatter("gradients", model.gradients, world, often),
            ),
        )
    summed = _all_reduce("gradients", model.gradients, world, often if stage == 2 else Often())
    stepped = _all_gather("stepped weights", model.computed, world, Often())
    return Division(
        gradients=size if stage == 2 else 1,
        optimizer_state=size,
        float32_copies=True,
        parts=(buckets,),
        traffic=_sent(summed, stepped),
    )


def fully_sharded(units: Sequence[Unit], world: World, micro_batches: int, *, copies: int, reshards: bool) -> Division:
    """Return the division of torch's `fully_shard`.

    Of units that are let go after the forward pass two are here at a time, the second for the next; what lies in no
    unit stays. There are the gradients of one, and a copy that is on its way.

    Args:
        units: Of the model, from `sizes_of`.
        world: How many processes there are, and machines.
        micro_batches: Micro-batches of a step.
        copies: How many times all of the model is there, divided between as many processes each: the machines for
            HYBRID_SHARD. Gradients are summed between copies after the last micro-batch.
        reshards: Whether units are let go after the forward pass (FULL_SHARD, HYBRID_SHARD), and gathered again in the
            backward pass; else they stay until then (SHARD_GRAD_OP, HYBRID_SHARD_ZERO2).
    """
    per_node = world.size // world.nodes
    group = World(size=world.size // copies, nodes=-(-world.size // copies // per_node))
    between = World(size=copies, nodes=min(copies, world.nodes))
    layers, rest = (units[:-1], units[-1]) if len(units) > 1 else (units, Unit(0, 0, 0))
    weights, gradients = sum(unit.weights for unit in units), sum(unit.gradients for unit in units)
    largest = max(layers, key=lambda unit: unit.weights)
    here = min(weights, 2 * largest.weights + rest.weights) if reshards else weights
    again = weights - rest.weights if reshards else 0
    often = Often(micro_batches)
    traffic = _sent(
        _all_gather("weights", weights, group, often),
        _all_gather("weights again", again, group, often),
        _reduce_scatter("gradients", gradients, group, often),
        _all_reduce("their sums", -(-gradients // group.size), between, Often()),
    )
    return Division(
        weights=group.size,
        gradients=group.size,
        optimizer_state=group.size,
        parts=(
            Amount(
                what="gathered weights",
                bytes=here,
                how="two units at a time, and what is in none" if reshards else "all units, until the backward pass",
            ),
            Amount(
                what="whole gradients", bytes=largest.computed + largest.gradients, how="of a unit, and a copy of them"
            ),
        ),
        traffic=traffic,
    )


def _sent(*exchanges: Exchange) -> tuple[Exchange, ...]:
    return tuple(exchange for exchange in exchanges if exchange.bytes)


def _all_reduce(what: str, size: int, group: World, often: Often) -> Exchange:
    return _exchange(what, 2 * size, "all-reduce", group, often)


def _all_gather(what: str, size: int, group: World, often: Often) -> Exchange:
    return _exchange(what, size, "all-gather", group, often)


def _reduce_scatter(what: str, size: int, group: World, often: Often) -> Exchange:
    return _exchange(what, size, "reduce-scatter", group, often)


def _exchange(what: str, size: int, operation: str, group: World, often: Often) -> Exchange:
    sent = often.micro_batches * size * (group.size - 1) // group.size
    return Exchange(what=what, bytes=sent, how=f"{operation}, {often}", processes=group.size, nodes=group.nodes)


def _bytes(parameters: Iterable[nn.Parameter], number_format: str) -> int:
    """Return the bytes of parameters whose real numbers are in a format."""
    return sum(parameter.numel() * _width(parameter, number_format) for parameter in parameters)


def _width(parameter: torch.Tensor, number_format: str) -> int:
    converted = number_format and parameter.is_floating_point()
    return getattr(torch, number_format).itemsize if converted else parameter.element_size()
