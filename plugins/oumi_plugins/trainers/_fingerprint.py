"""What prepared examples follow from, in a hash: rows, tokenizer, settings, and the versions of what computes.

Nothing else goes in: no path, no name of a dataset, nothing about training.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import importlib.metadata
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from oumi_kernel import DataError

LIBRARIES = ("oumi-kernel", "tokenizers", "transformers", "jinja2")

_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
_TAGGED = b"\xc1"
"""A byte with which no encoding of a plain row begins."""
_LEAVES = (
    type(None),
    bool,
    int,
    float,
    str,
    bytes,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
    np.generic,
)


class Digest:
    """A hash of parts, whose borders count."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)
        self.size = 0

    def add(self, part: bytes) -> None:
        """Take in one part."""
        self._hash.update(len(part).to_bytes(8, "little"))
        self._hash.update(part)
        self.size += len(part)

    def text(self) -> str:
        """Return the hash of what was taken in, in hex."""
        return self._hash.hexdigest()


def digest(*parts: bytes) -> str:
    """Return the hash of parts."""
    found = Digest()
    for part in parts:
        found.add(part)
    return found.text()


def row_bytes(row: Any, place: str) -> bytes:
    """Return bytes that two rows share only if they are the same.

    Raises:
        DataError: The row holds something that has no such bytes, such as an object of some class.
    """
    return _plain_bytes(row) or _TAGGED + _ENCODER.encode(_tagged(row, place))


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """Return the content of a tokenizer, as far as ids follow from it."""
    template = tokenizer.chat_template
    return {
        "class": type(tokenizer).__qualname__,
        "content": _fast(tokenizer) if tokenizer.is_fast else _slow(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special": bool(getattr(tokenizer, "split_special_tokens", False)),
        "template": template,
        "today": str(datetime.date.today()) if "strftime_now" in str(template) else "",
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes examples, our own code also between two releases."""
    code = digest(*(path.read_bytes() for path in sorted(Path(__file__).parent.glob("_*.py"))))
    return {name: importlib.metadata.version(name) for name in LIBRARIES} | {"code": code}


def _plain_bytes(row: Any) -> bytes | None:
    """Return the encoding of a row of plain values; None if its encoding could be another row's too, as a date's."""
    try:
        data = _ENCODER.encode(row)
        return data if _DECODER.decode(data) == row else None
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _fast(tokenizer: Any) -> str:
    state = msgspec.json.decode(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None  # what the last call asked for, not what the tokenizer is
    return digest(msgspec.json.encode(state))


def _slow(tokenizer: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest(
            *(path.read_bytes() for path in files), repr(sorted(tokenizer.get_added_vocab().items())).encode()
        )


def _tagged(value: Any, place: str) -> Any:
    """Return a value with the type of everything in it."""
    kind = type(value).__qualname__
    if isinstance(value, Mapping):
        return [kind, [[_tagged(key, place), _tagged(item, place)] for key, item in value.items()]]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [kind, value.dtype.str, list(value.shape), value.tobytes()]
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        return [kind, [_tagged(item, place) for item in value]]
    if isinstance(value, _LEAVES):
        return [kind, repr(value)]
    raise DataError(
        f"{place}: a {type(value).__module__}.{kind} is nothing that this trainer can tell from another one. Rows hold "
        "text, numbers, dates, arrays, lists and objects of these."
    )
