"""What a dry run asks of a trainer beyond its contract, and the records that it answers with. No torch here either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from oumi_kernel.contracts import Row, Session

SPACE = "\N{OPEN BOX}"


class Token(msgspec.Struct, frozen=True):
    """One token of an example.

    Attributes:
        id: Its number in the vocabulary.
        text: What it stands for; the vocabulary's own spelling where that is no whole character.
        supervised: Whether the loss is computed on it.
    """

    id: int
    text: str
    supervised: bool


class PreviewedExample(msgspec.Struct, frozen=True, kw_only=True):
    """One example as the model will get it, and what it was made from.

    Attributes:
        index: Its number in the split.
        raw: Number -> row as it was read; several where they share the example, none where that is not known.
        rendered: The text that its tokens stand for.
        tokens: Its tokens.
    """

    index: int
    raw: Mapping[int, Row]
    rendered: str
    tokens: tuple[Token, ...]


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """How long the examples of a split are.

    Attributes:
        shortest: Tokens of the shortest.
        median: Half of them have at most as many tokens.
        p95: Nineteen in twenty have at most as many.
        longest: Tokens of the longest.
        tokens: Tokens of all.
        supervised: Tokens of all that carry a loss.
        padding: Share of padding in batches of the run's size and order, if they were padded to their longest row.
    """

    shortest: int
    median: int
    p95: int
    longest: int
    tokens: int
    supervised: int
    padding: float


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """One part of an estimate.

    Attributes:
        what: What takes the bytes.
        bytes: How many; None where it is not known.
        how: How that was found.
    """

    what: str
    bytes: int | None
    how: str


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of the run will need.

    Attributes:
        parameters: Parameters of the model, tied ones once.
        trained: Those of them that train.
        device: Where the memory is: `cpu`, or the accelerator's name.
        memory: The parts of the memory.
        peak_bytes: The most that is needed at one time, beside what Python and the libraries take; not the sum of the
            parts, as not all are there at once.
        free_bytes: Memory that is free on the device now; None where that is not known.
        disk: What will be written into the output folder.
        free_disk_bytes: What is free there now.
        notes: Further facts about the first step, in sentences.
        unchecked: What could not be checked, and why.
    """

    parameters: int
    trained: int
    device: str
    memory: tuple[Amount, ...]
    peak_bytes: int
    free_bytes: int | None
    disk: tuple[Amount, ...]
    free_disk_bytes: int
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """What one process holds of a model that several divide between them.

    Attributes:
        weights: Bytes of its part of the weights, and of what is gathered at one time at most.
        gradients: The same of gradients.
        share: Share of the optimizer's state that it has.
    """

    weights: int
    gradients: int
    share: float = 1.0


@runtime_checkable
class DividesModel(Protocol):
    """What a strategy may offer beside `Strategy`."""

    def division(self, model: Any) -> Division:
        """Return what one process will hold of a model, which may be one without weights."""
        ...


@runtime_checkable
class Accounted(Protocol):
    """Examples that know what became of the rows that they were made from."""

    @property
    def report(self) -> Any:
        """Rows read (`rows`), used (`used`) and dropped by reason (`dropped`), and how many lost their end (`cut`)."""
        ...


@runtime_checkable
class ChecksState(Protocol):
    """What a strategy may offer beside `Strategy`."""

    def check(self, directory: Path) -> None:
        """Raise what `load` would for what `save` wrote, without reading tensors; a dry run's model has no weights.

        Raises:
            CheckpointError: A file is missing, damaged, or does not fit the model.
        """
        ...


@runtime_checkable
class Rehearses(Protocol):
    """What a trainer may offer beside `Trainer`. A dry run with one that does not says what it could not show."""

    def preview(self, rows: Iterable[Row], examples: Sequence[Any], count: int) -> Sequence[PreviewedExample]:
        """Return the first `count` examples of a split with the rows that they were made from."""
        ...

    def lengths(self, examples: Sequence[Any]) -> Lengths:
        """Return how long the examples of a split are."""
        ...

    def miniature(self, skeleton: Any) -> Any:
        """Return a model like `skeleton`, on the CPU, whose every parameter is small.

        Names, modules, dimensions, dtypes, ties and what is frozen are those of `skeleton`: an optimizer, a schedule
        and a strategy see what they will see in the run, without its memory.
        """
        ...

    def rehearse(self, session: Session, skeleton: Any) -> Estimate:
        """Do what `train` does before its first step, and estimate what the run needs.

        Args:
            session: The session of the run; its model is the miniature.
            skeleton: The model without weights, from which sizes are read.

        Raises:
            OumiError: What `train` would raise before its first step.
        """
        ...


def token_view(tokens: Sequence[Token]) -> list[tuple[str, bool]]:
    """Return (text, supervised) of each token, such as `345:Yes`, in brackets if supervised; none holds a space."""
    shown: list[tuple[str, bool]] = []
    for token in tokens:
        text = "".join(c if c.isprintable() and not c.isspace() else _escaped(c) for c in token.text)
        cell = f"{token.id}:{text}"
        shown.append((f"[{cell}]" if token.supervised else cell, token.supervised))
    return shown


def _escaped(character: str) -> str:
    return SPACE if character == " " else character.encode("unicode_escape").decode()
