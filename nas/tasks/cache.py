"""Folders of arrays that are computed once, known by their content, and read by memory mapping."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def content_key(parts: Iterable[str | bytes]) -> str:
    """A name for content: equal parts in equal order give the same 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # The length goes in too, so that ("ab", "c") and ("a", "bc") differ.
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def open_arrays(folder: Path) -> Arrays:
    """The arrays of a folder of ``.npy`` files, by file name, mapped into memory and read-only.

    Raises:
        ValueError: A file is not a plain array; arrays of objects would need pickle and are never read.
    """
    return {
        file.stem: np.load(file, mmap_mode=None if _is_empty(file) else "r", allow_pickle=False)
        for file in sorted(folder.glob("*.npy"))
    }


def cached_arrays(directory: Path, key: str, write: Callable[[Path], None]) -> Arrays:
    """Open ``directory/key``; when it is not there, let ``write`` fill a folder first.

    The folder is filled aside and renamed when it is whole: a killed run leaves no half-written cache, and of two
    processes that compute the same content, one wins and the other reads.

    Args:
        directory: Where the cache lies; made when missing.
        key: Name of the content, as `content_key` gives it.
        write: Fills the folder that it is given with ``.npy`` files.
    """
    target = directory / key
    if not target.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=directory))
        try:
            write(aside)
            try:
                os.replace(aside, target)  # noqa: PTH105  (Path.replace would hide which of the two calls raised.)
            except OSError:
                if not target.is_dir():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return open_arrays(target)


def _is_empty(file: Path) -> bool:
    with file.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(stream)
    # An array without elements cannot be mapped.
    return 0 in shape
