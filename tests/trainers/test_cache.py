"""The cache on disk: an entry is there whole or not at all, and what nobody uses goes."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from oumi_kernel import CheckpointError
from oumi_plugins.trainers._cache import Cache, user_folder

ARRAYS = {"ids": np.arange(1000, dtype=np.int32), "nothing": np.zeros(0, np.int64)}
DAY = 24 * 3600


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def aged(path: Path, days: float) -> Path:
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_an_entry_comes_back_as_it_was_written_and_cannot_be_changed(cache: Cache) -> None:
    assert cache.read("k") is None
    cache.write("k", ARRAYS, {"rows": 3, "why": "ü"})
    entry = cache.read("k")
    assert entry
    assert entry.facts == {"rows": 3, "why": "ü"}
    assert {name: (array.dtype, array.tolist()) for name, array in entry.arrays.items()} == {
        name: (array.dtype, array.tolist()) for name, array in ARRAYS.items()
    }
    with pytest.raises(ValueError, match="read-only"):
        entry.arrays["ids"][0] = 7
    assert load_file(cache.folder / "k.safetensors")["ids"].tolist() == ARRAYS["ids"].tolist()  # a format of others


def test_arrays_are_mapped_and_not_read(cache: Cache) -> None:
    cache.write("k", {"ids": np.zeros(30_000_000, np.int32)}, {})

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    entry = cache.open("k")
    assert entry.arrays["ids"][-1] == 0
    assert resident() - before < 20_000_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"no tensors at all",
        lambda data: data[:-100],
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        lambda data: data.replace(b'rows\\":3', b'rows\\":4'),
    ],
)
def test_a_damaged_entry_is_as_good_as_none(cache: Cache, damage, caplog: pytest.LogCaptureFixture) -> None:
    cache.write("k", ARRAYS, {"rows": 3})
    path = cache.folder / "k.safetensors"
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    assert cache.read("k") is None
    assert f"the cached data in {path} is damaged" in caplog.text
    cache.write("k", ARRAYS, {"rows": 3})
    assert cache.read("k")


def test_what_was_opened_can_be_read_after_it_was_removed_or_replaced(cache: Cache) -> None:
    entry = cache.write("k", ARRAYS, {})
    cache.write("k", {"ids": np.zeros(5, np.int32)}, {})
    (cache.folder / "k.safetensors").unlink()
    assert entry.arrays["ids"].tolist() == ARRAYS["ids"].tolist()
    with pytest.raises(CheckpointError, match="was removed while it was in use"):
        cache.open("k")


def test_entries_that_were_not_used_for_thirty_days_are_removed_and_nothing_else(cache: Cache) -> None:
    for name in ("old", "used", "new"):
        cache.write(name, ARRAYS, {})
    aged(cache.folder / "old.safetensors", 31)
    aged(cache.folder / "used.safetensors", 31)
    aged(cache.folder / "new.safetensors", 29)
    for name, days in ((".tmp-killed", 2.0), (".tmp-writing", 0.1), ("notes.txt", 99.0)):
        (cache.folder / name).write_text("x")
        aged(cache.folder / name, days)
    assert cache.read("used")
    cache.sweep()
    assert files(cache) == [".tmp-writing", "new.safetensors", "notes.txt", "used.safetensors"]


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 1,000 bytes: as a full disk, the write itself fails.

    No longer than that write: the test runner's own output is a file too.
    """
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_cannot_be_written_leaves_nothing_and_says_how_much_was_needed(cache: Cache) -> None:
    message = r"cannot be written into .*: File too large; 4,\d\d\d bytes are needed, .* free. OUMI_CACHE_DIR names"
    with pytest.raises(CheckpointError, match=message) as caught, small_files():
        cache.write("k", ARRAYS, {})
    assert caught.value.exit_code == 6
    assert files(cache) == []


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = Cache(tmp_path / "file/cache")
    assert cache.read("k") is None
    with pytest.raises(CheckpointError, match=r"cannot be written into .*/file/cache: .*OUMI_CACHE_DIR names another"):
        cache.write("k", ARRAYS, {})


@pytest.mark.parametrize(
    ("own", "caches", "expected"),
    [
        ("/a", "/b", "/a/prepared"),
        ("", "/b", "/b/oumi-kernel/prepared"),
        (None, None, "/home/me/.cache/oumi-kernel/prepared"),
        ("~/c", None, "/home/me/c/prepared"),
    ],
)
def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, own, caches, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("OUMI_CACHE_DIR", own), ("XDG_CACHE_HOME", caches)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert str(user_folder()) == expected
