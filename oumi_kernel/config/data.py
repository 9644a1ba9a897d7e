"""The YAML section `data`: datasets of each split, how they are mixed, and how examples become batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta

from oumi_kernel.schema import ConfigEnum, Fraction, NonNegativeInt, Params, PositiveInt

Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
"""A seed that every library takes: NumPy's range is the smallest."""


class TrainTarget(ConfigEnum):
    """On which tokens the loss is computed."""

    ALL_TOKENS = "all_tokens"
    ALL_ASSISTANT_TURNS = "all_assistant_turns"
    FINAL_ASSISTANT_TURN = "final_assistant_turn"


class DatasetParams(Params):
    """One dataset of a split."""

    dataset_name: Annotated[str, Meta(min_length=1)]
    """Name of an installed dataset type, such as text_sft, or a hub id. Required."""

    dataset_path: str | None = None
    """Local file or folder. `./name` is read beside the configuration file."""

    subset: str | None = None
    """Name of a part of a hub dataset. Null: its only one."""

    split: str = "train"
    """The split to read; a slice such as `train[:1000]` works."""

    dataset_kwargs: dict[str, Any] = {}
    """Parameters of the dataset type; `oumi plugins show NAME` lists them."""

    sample_count: NonNegativeInt | None = None
    """How many rows to take; more than there are repeats them. Null: all."""

    mixture_proportion: Fraction | None = None
    """Probability with which the next row comes from this dataset. All datasets of the split, or none."""

    shuffle: bool = False
    """Whether to shuffle the rows before `sample_count` is taken."""

    seed: Seed | None = None
    """Seed of that shuffle. Null: another order each time."""

    shuffle_buffer_size: PositiveInt = 1000
    """Rows held in memory to shuffle a stream."""

    trust_remote_code: bool = False
    """Whether code from the repository of a dataset's processor may run on this machine."""

    transform_num_workers: PositiveInt | Literal["auto"] | None = None
    """Processes that prepare rows: a number or auto. Null: this process."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse parameters that repeat a key of this section."""
        taken = sorted(set(self.dataset_kwargs) & set(self.__struct_fields__))
        if taken:
            yield "dataset_kwargs", f"repeats keys of the dataset: {', '.join(taken)}; set them beside dataset_kwargs."


class DatasetSplitParams(Params):
    """One split: its datasets and how they are mixed and batched."""

    datasets: list[DatasetParams] = []
    """The datasets of the split."""

    collator_name: str | None = None
    """How examples become a batch. Null: the dataset chooses. The same for every split."""

    collator_kwargs: dict[str, Any] = {}
    """Parameters of the collator."""

    train_target: TrainTarget | None = None
    """On which tokens the loss is computed: all_tokens, all_assistant_turns or final_assistant_turn. Null: the
    collator decides."""

    pack: bool = False
    """Whether one example is several sequences end to end, up to `model.model_max_length` tokens, none of which sees
    another; batch sizes count such packs. Needs `stream`."""

    stream: bool = False
    """Whether to read rows as they are needed instead of all at once. Rows of files and folders always are."""

    target_col: str | None = None
    """The column that is trained on: text, turns or tokens. `pack` needs it where the dataset type declares none. Null:
    known by its name."""

    mixture_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """When a mixture ends: with the first dataset that runs out, or when each has been read once in full."""

    seed: Seed | None = None
    """Seed of the mixture. Null: another order each time."""

    use_torchdata: bool | None = False
    """Whether to load through torchdata's nodes."""


class DataParams(Params):
    """The data: one split to train on, and optionally others to evaluate on."""

    train: DatasetSplitParams = DatasetSplitParams()
    """What the model trains on."""

    validation: DatasetSplitParams = DatasetSplitParams()
    """What the model is evaluated on during training."""

    test: DatasetSplitParams = DatasetSplitParams()
    """What the finished model is measured on."""
