"""Seeds that nobody gave: each run draws its own, and all processes of a run have the same."""

from __future__ import annotations

from oumi_kernel.contracts import World
from oumi_kernel.loading import load_text
from oumi_kernel.seeds import seeds_of, with_seeds
from tests.conftest import minimal_yaml

SHUFFLED = "        shuffle: true\n      - dataset_name: text_sft\n        shuffle: true\n"


def seeds(world: World, training: str = "  data_seed: 1\n") -> dict[str, int]:
    return seeds_of(with_seeds(load_text(minimal_yaml(data=SHUFFLED, training=training), "c"), world).config)


def test_every_process_has_the_same_seeds_though_they_have_not_met() -> None:
    first, second = (seeds(World(rank=rank, size=2)) for rank in range(2))
    assert first == second
    assert len(set(first.values())) == len(first)  # each dataset its own
    assert first != seeds(World(size=2), "  data_seed: 2\n")


def test_a_process_alone_draws_seeds() -> None:
    assert seeds(World()) != seeds(World())
