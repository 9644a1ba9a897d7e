"""Which rows make up a split: index arithmetic against the `datasets` library and against what its name says."""

from __future__ import annotations

from collections import Counter

import pytest

from oumi_kernel import DataError
from oumi_kernel.config import DatasetParams, DatasetSplitParams
from oumi_kernel.mixture import mix


def rows(name: str, count: int) -> list[dict[str, str]]:
    return [{"text": f"{name}{index}"} for index in range(count)]


def mixed(parts: list[list], params: list[dict], **split: object) -> list[str]:
    datasets = [DatasetParams(dataset_name=f"d{index}", **given) for index, given in enumerate(params)]
    return [row["text"] for row in mix(parts, DatasetSplitParams(datasets=datasets, **split), split_name="train")]


def test_without_proportions_datasets_follow_one_another() -> None:
    assert mixed([rows("a", 2), rows("b", 1)], [{}, {}]) == ["a0", "a1", "b0"]


@pytest.mark.parametrize(("count", "expected"), [(2, ["a0", "a1"]), (5, ["a0", "a1", "a2", "a0", "a1"])])
def test_a_sample_count_takes_or_repeats(count: int, expected: list[str]) -> None:
    assert mixed([rows("a", 3)], [{"sample_count": count}]) == expected


def test_a_seeded_shuffle_is_a_permutation_that_comes_back() -> None:
    first = mixed([rows("a", 50)], [{"shuffle": True, "seed": 1}])
    assert first == mixed([rows("a", 50)], [{"shuffle": True, "seed": 1}])
    assert first != mixed([rows("a", 50)], [{"shuffle": True, "seed": 2}])
    assert sorted(first) == sorted(mixed([rows("a", 50)], [{}])) != first


def test_a_sample_is_taken_after_the_shuffle() -> None:
    shuffled = mixed([rows("a", 50)], [{"shuffle": True, "seed": 1}])
    assert mixed([rows("a", 50)], [{"shuffle": True, "seed": 1, "sample_count": 7}]) == shuffled[:7]


PROPORTIONS = [{"mixture_proportion": 0.7}, {"mixture_proportion": 0.3}]


def test_a_mixture_ends_with_the_first_dataset_that_runs_out() -> None:
    found = mixed([rows("a", 1000), rows("b", 1000)], PROPORTIONS, seed=3)
    assert found.count("a999") == 1
    assert found[-1] == "a999"
    assert len(found) == len(set(found))
    assert sum(text.startswith("b") for text in found) / len(found) == pytest.approx(0.3, abs=0.04)
    assert found == mixed([rows("a", 1000), rows("b", 1000)], PROPORTIONS, seed=3)


def test_or_goes_on_until_every_dataset_was_read_in_full() -> None:
    found = Counter(mixed([rows("a", 1000), rows("b", 1000)], PROPORTIONS, seed=3, mixture_strategy="all_exhausted"))
    assert set(found) == {f"{name}{index}" for name in "ab" for index in range(1000)}
    assert max(found.values()) > 1


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
def test_its_length_is_that_of_the_datasets_library_on_average(strategy: str) -> None:
    import datasets

    parts = [rows("a", 60), rows("b", 60)]
    ours = [len(mixed(parts, PROPORTIONS, seed=seed, mixture_strategy=strategy)) for seed in range(60)]
    tables = [datasets.Dataset.from_list(part) for part in parts]
    theirs = [
        len(datasets.interleave_datasets(tables, [0.7, 0.3], seed=seed, stopping_strategy=strategy))
        for seed in range(60)
    ]
    assert sum(ours) / 60 == pytest.approx(sum(theirs) / 60, rel=0.06)


def test_a_dataset_of_no_probability_is_not_waited_for() -> None:
    found = mixed(
        [rows("a", 5), rows("b", 5)],
        [{"mixture_proportion": 1.0}, {"mixture_proportion": 0.0}],
        mixture_strategy="all_exhausted",
    )
    assert found == [f"a{index}" for index in range(5)]


def test_an_empty_dataset_is_an_error_with_its_name() -> None:
    with pytest.raises(DataError, match=r"data\.train: dataset 'd1' has no rows"):
        mixed([rows("a", 1), []], [{}, {}])


def test_a_split_of_which_nothing_is_taken_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data\.train: sample_count leaves no rows"):
        mixed([rows("a", 3)], [{"sample_count": 0}])
    assert mixed([rows("a", 3), rows("b", 1)], [{"sample_count": 0}, {}]) == ["b0"]


def test_a_dataset_that_is_drawn_from_and_gives_nothing_is_an_error_that_names_it() -> None:
    given = [{"mixture_proportion": 0.5}, {"mixture_proportion": 0.5, "sample_count": 0}]
    with pytest.raises(DataError, match=r"data\.train: dataset 'd1' has sample_count 0 and mixture_proportion 0\.5"):
        mixed([rows("a", 3), rows("b", 3)], given)
