"""The formulae of what a process holds and sends, against rings whose messages are counted and models by hand."""

from __future__ import annotations

import pytest
from torch import nn

from oumi_kernel.contracts import World
from oumi_plugins.strategies._division import Unit, fully_sharded, replicated, sizes_of, zero

LAYERS = [Unit(4000, 4000, 8000)] * 3
REST = Unit(1600, 1600, 3200)
WHOLE = Unit(13_600, 13_600, 13_600)


def ring(processes: int, size: int, turns: int) -> int:
    """Return the bytes that each process sends when parts go around a ring, one step a turn."""
    sent = [0] * processes
    parts = [size // processes] * processes
    for turn in range(turns):
        for process in range(processes):
            sent[process] += parts[(process - turn) % processes]
    assert len(set(sent)) == 1
    return sent[0]


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_an_exchange_sends_what_a_ring_does(processes: int) -> None:
    world = World(size=processes)
    gathered = ring(processes, 16_000, turns=processes - 1)
    summed = 2 * gathered  # parts are added up on the way around, then go around again
    (exchange,) = replicated(Unit(0, 0, 16_000), world).traffic
    assert exchange.bytes == summed
    for found in (
        fully_sharded([Unit(16_000, 0, 16_000)], world, 1, copies=1, reshards=False),
        zero(3, Unit(16_000, 0, 16_000), world, 1, bucket_bytes=0, live_bytes=0),
    ):
        assert {found.traffic[0].bytes, found.traffic[-1].bytes} == {gathered}


def bytes_sent(found) -> dict[str, int]:
    return {exchange.what: exchange.bytes for exchange in found.traffic}


def test_stages_of_zero_divide_one_thing_more_each_and_send_more_often() -> None:
    one, two, three = (zero(stage, WHOLE, World(size=8), 4, bucket_bytes=500, live_bytes=2000) for stage in (1, 2, 3))
    assert [(d.weights, d.gradients, d.optimizer_state) for d in (one, two, three)] == [(1, 1, 8), (1, 8, 8), (8, 8, 8)]
    once = 13_600 * 7 // 8
    assert bytes_sent(one) == {"gradients": 2 * once, "stepped weights": once}
    assert bytes_sent(two) == {"gradients": 4 * 2 * once, "stepped weights": once}
    assert bytes_sent(three) == {"weights": 4 * once, "weights again": 4 * once, "gradients": 4 * once}
    assert {part.what: part.bytes for part in three.parts} == {"gathered weights": 2000, "buckets": 1000}


def test_units_that_are_let_go_are_gathered_twice_and_two_at_a_time() -> None:
    units, world = [*LAYERS, REST], World(size=8)
    keeps, lets_go = (fully_sharded(units, world, 2, copies=1, reshards=reshards) for reshards in (False, True))
    once = 13_600 * 7 // 8
    assert bytes_sent(keeps) == {"weights": 2 * once, "gradients": 2 * 2 * once}
    assert bytes_sent(lets_go) == bytes_sent(keeps) | {"weights again": 2 * 12_000 * 7 // 8}
    assert [found.parts[0].bytes for found in (keeps, lets_go)] == [13_600, 2 * 4000 + 1600]
    assert lets_go.parts[1].bytes == 4000 + 8000
    alone = fully_sharded([WHOLE], world, 1, copies=1, reshards=True)  # one unit, which is never let go in between
    assert alone.parts[0].bytes == 13_600


def test_copies_on_machines_exchange_gradients_between_machines_alone() -> None:
    found = fully_sharded([*LAYERS, REST], World(size=16, nodes=2), 2, copies=2, reshards=True)
    assert (found.weights, found.gradients, found.optimizer_state) == (8, 8, 8)
    *within, between = found.traffic
    assert {(exchange.processes, exchange.nodes) for exchange in within} == {(8, 1)}
    assert (between.processes, between.nodes, between.bytes) == (2, 2, 27_200 // 8)  # once, for both micro-batches
    none = fully_sharded([*LAYERS, REST], World(size=16, nodes=2), 1, copies=16, reshards=False)  # NO_SHARD
    assert [(exchange.processes, exchange.nodes) for exchange in none.traffic] == [(16, 2)]


def test_units_have_each_parameter_once_in_the_number_format_asked_for() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(10, 10, bias=False) for _ in range(3)])})
    model["head"], model["embeddings"] = nn.Linear(10, 20, bias=False), nn.Embedding(20, 10)
    model["layers"][0].requires_grad_(False)
    model.to("meta")
    model["head"].weight = model["embeddings"].weight
    layer = Unit(weights=200, computed=200, gradients=400)
    found = sizes_of(model, model["layers"], "bfloat16", "float32")
    assert found == [Unit(200, 0, 0), layer, layer, Unit(400, 400, 800)]  # head and embeddings are one
    assert sizes_of(model) == [Unit(2000, 1600, 1600)]
