"""Folders of arrays: whole or absent, and never pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nas.tasks.cache import cached_arrays, content_key, open_arrays


def test_written_once_and_mapped(tmp_path: Path) -> None:
    calls = []

    def write(folder: Path) -> None:
        calls.append(folder)
        np.save(folder / "values.npy", np.arange(6).reshape(2, 3))
        np.save(folder / "none.npy", np.zeros((0, 3)))

    for _ in range(2):
        arrays = cached_arrays(tmp_path, "key", write)
    assert len(calls) == 1
    assert isinstance(arrays["values"], np.memmap)
    assert arrays["values"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["none"].shape == (0, 3)
    with pytest.raises(ValueError, match="read-only"):
        arrays["values"][0, 0] = 1


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        np.save(folder / "values.npy", np.arange(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_arrays(tmp_path, "key", write)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_processes_wins(tmp_path: Path) -> None:
    def other(folder: Path) -> None:
        np.save(folder / "values.npy", np.array([1]))

    def late(folder: Path) -> None:
        cached_arrays(tmp_path, "key", other)
        np.save(folder / "values.npy", np.array([2]))

    assert cached_arrays(tmp_path, "key", late)["values"].tolist() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|[Oo]bject"):
        open_arrays(tmp_path)


def test_key_tells_where_parts_end() -> None:
    assert content_key(["ab", "c"]) != content_key(["a", "bc"])
    assert content_key(["ab", b"c"]) == content_key([b"ab", "c"])
