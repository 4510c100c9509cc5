"""Images with their labels: read from class folders or tables, prepared once by the model's own processor."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.tasks.batching import Rows, by_length, shuffled
from nas.tasks.cache import Arrays, cached_arrays, content_key
from nas.tasks.cells import groups_of, names_of
from nas.tasks.checks import check_columns, check_path
from nas.tasks.data import Examples
from nas.tasks.files import ORDERS, SOURCE, class_folders, read_tables
from nas.tasks.sources import Source
from nas.tasks.splits import Cut, check_split_names, listed, named_splits
from search_spaces.cost import Workload

if TYPE_CHECKING:
    import pandas as pd
    import torch

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_CHUNK = 256


@dataclass(frozen=True)
class Pictures:
    """Splits of images.

    Args:
        examples: By split; an image's ``text`` is the hash of its bytes.
        files: Hash -> the image's encoded bytes, or the file that holds them.
    """

    examples: Mapping[str, Examples]
    files: Mapping[str, bytes | Path]


@dataclass(frozen=True)
class ImageData:
    """Where the images lie and how they are split; as `nas.tasks.data.TextData`.

    Args:
        path: A folder of class folders of images, alone or below folders of splits (``train/cat/1.png``); or a table
            with a column of encoded images, as `datasets` writes: parquet, a saved folder, a data set of the hub.
        image_column: Of a table: the images.
        label_column: Of a table: the labels.
        group_columns: Of a table: column or columns that name groups, kept for fairness figures.
        subset: The data set's configuration on the hub.
        splits: Our split -> the source's name for it, where the names say too little.
        train: Most samples in train; None means all that are left.
        calibration, validation, test: Samples to cut, or shares of all of them below 1.
        seed: Of the cut.

    Raises:
        ValueError: A size is neither a share nor a number of images, or the seed is no whole number.
    """

    path: str
    image_column: str = "image"
    label_column: str = "label"
    group_columns: str | Sequence[str] = ()
    subset: str | None = None
    splits: Mapping[str, str] | None = None
    train: int | float | None = None
    calibration: int | float = 256
    validation: int | float = 0.1
    test: int | float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self._cut
        check_path(self.path)
        check_columns(
            image_column=self.image_column or "",
            label_column=self.label_column or "",
            group_columns=self.group_columns,
        )
        check_split_names(self.splits)

    def read(self) -> Pictures:
        """Read the source and split it; the same image twice is kept once.

        Raises:
            FileNotFoundError, ValueError: There is no such source, a column is missing, a label is missing, a cell
                holds no image, or there are too few samples.
        """
        files: dict[str, bytes | Path] = {}
        tables = named_splits(self._tables(), self.splits, self.path)
        examples = {split: self._examples(table, split, files) for split, table in tables.items()}
        return Pictures(self._cut(examples, self.path), files)

    @property
    def _cut(self) -> Cut:
        return Cut(self.train, self.calibration, self.validation, self.test, self.seed)

    def _tables(self) -> dict[str, pd.DataFrame]:
        import pandas as pd

        place = Path(self.path).expanduser()
        if place.is_dir() and (classes := class_folders(place, _SUFFIXES)):
            columns = [self.image_column, self.label_column]
            return {split: pd.DataFrame(files, columns=columns) for split, files in classes.items()}
        return read_tables(self.path, self.subset)

    def _examples(self, table: pd.DataFrame, split: str, files: dict[str, bytes | Path]) -> Examples:
        for column in (self.image_column, self.label_column, *names_of(self.group_columns)):
            if column not in table.columns:
                raise ValueError(f"{self.path}: column {column!r} is not there; there are {listed(table.columns)}.")
        source: Source = table.attrs.get(SOURCE, Source(self.path, split))
        if (lacking := table[self.label_column].isna().to_numpy()).any():
            place = source.place(int(lacking.argmax()))
            raise ValueError(
                f"{place} has no label in column {self.label_column!r}. Fill it in, or leave the sample out."
            )
        keys = []
        for row, cell in enumerate(table[self.image_column]):
            image = _source(cell, source, row)
            data = image.read_bytes() if isinstance(image, Path) else image
            keys.append(hashlib.blake2b(data, digest_size=16).hexdigest())
            files.setdefault(keys[-1], image)
        rows = np.arange(len(table), dtype=np.int64)
        return Examples(
            texts=tuple(keys),
            rows=rows,
            labels=tuple(table[self.label_column].tolist()),
            groups=groups_of(table, self.group_columns, source, rows),
            source=source,
            order=table.attrs.get(ORDERS, {}).get(self.label_column, ()),
        )


@dataclass(frozen=True)
class ImageSamples:
    """The splits of a task as arrays of pixels.

    Args:
        pictures: Images by split.
        processor: An image processor of `transformers`.
        label_ids: Classes by split.
        cache_dir: Where arrays are kept between runs; None keeps them in memory only.
        channels: Of the model: 1 takes images as shades of grey, 3 as colours.
    """

    pictures: Pictures
    processor: Any
    label_ids: Mapping[str, NDArray[Any]]
    cache_dir: str | Path | None = None
    channels: int = 3
    _arrays: dict[str, Arrays] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def examples(self) -> Mapping[str, Examples]:
        """Samples by split; an image's text is the hash of its bytes."""
        return self.pictures.examples

    def size(self, split: str) -> int:
        """How many samples a split has."""
        return len(self._split(split))

    @property
    def max_length(self) -> int:
        """An image has no tokens to keep."""
        return 0

    def offsets(self, split: str) -> None:
        """No ragged ends: every image has as many patches."""

    def labels(self, split: str) -> NDArray[Any]:
        """The samples' classes, ``(samples,)``."""
        return self.label_ids[split]

    def groups(self, split: str) -> Mapping[str, tuple[str, ...]]:
        """Group column -> the samples' values in it."""
        return self._split(split).groups

    def fingerprint(self, split: str) -> str:
        """Name of a split's content as the model sees it."""
        return self._key(split)

    def pixels(self, split: str) -> NDArray[np.float32]:
        """Prepared images, ``(samples, channels, height, width)``."""
        if split not in self._arrays:
            if self.cache_dir is None:
                self._arrays[split] = {"pixel_values": self._prepared(split)}
            else:

                def write(folder: Path) -> None:
                    np.save(folder / "pixel_values.npy", self._prepared(split), allow_pickle=False)

                self._arrays[split] = cached_arrays(Path(self.cache_dir) / "pixels", self._key(split), write)
        return self._arrays[split]["pixel_values"]

    def order(self, split: str, batch_size: int) -> list[Rows]:
        """Rows of batches that hold every sample once."""
        return by_length(np.zeros(self.size(split), dtype=np.int64), batch_size)

    def shuffled(self, split: str, batch_size: int, seed: int) -> Iterator[Rows]:
        """Rows of random batches without end: new epochs are shuffled anew."""
        return shuffled(np.zeros(self.size(split), dtype=np.int64), batch_size, seed)

    def batch(self, split: str, rows: Rows | Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs for these samples: ``pixel_values (samples, channels, height, width)``."""
        import torch

        return {"pixel_values": torch.from_numpy(np.array(self.pixels(split)[np.asarray(rows)], dtype=np.float32))}

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Every sample of a split once, as the model's inputs."""
        for rows in self.order(split, batch_size):
            yield self.batch(split, rows)

    def example_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """As many random images as the workload's batch has."""
        import torch

        size = (workload.batch_size, *self.pixels("calibration").shape[1:])
        return {"pixel_values": torch.from_numpy(np.random.default_rng(0).normal(size=size).astype(np.float32))}

    def _split(self, split: str) -> Examples:
        if split not in self.examples:
            raise ValueError(f"`split` must be one of {', '.join(self.examples)}, but got {split!r}.")
        return self.examples[split]

    def _key(self, split: str) -> str:
        # The class, too: those on torchvision and on PIL write the same settings and do not give the same pixels.
        processor = (type(self.processor).__name__, self.processor.to_json_string())
        return content_key(["pixels", *processor, str(self.channels), *self._split(split).texts])

    def _prepared(self, split: str) -> NDArray[np.float32]:
        keys = self._split(split).texts
        chunks = []
        for start in range(0, len(keys), _CHUNK):
            some = [_decode(self.pictures.files[key], self.channels) for key in keys[start : start + _CHUNK]]
            chunks.append(np.asarray(self.processor(some, return_tensors="np")["pixel_values"], dtype=np.float32))
        return np.concatenate(chunks)


def _source(cell: Any, source: Source, row: int) -> bytes | Path:
    """The encoded image of a cell, or its file."""
    if isinstance(cell, Path):
        return cell
    if isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes):
        return bytes(cell["bytes"])
    if isinstance(cell, Mapping) and isinstance(cell.get("path"), str) and Path(cell["path"]).is_file():
        return Path(cell["path"])
    if isinstance(cell, bytes):
        return cell
    kind = type(cell).__name__
    raise ValueError(f"{source.place(row)} must hold an encoded image, but holds a {kind}.")


def _decode(source: bytes | Path, channels: int) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        name = str(source) if isinstance(source, Path) else "an image of the table"
        raise ValueError(f"{name} must be an image, but cannot be read: {error}") from error
    return pixels[:, :, None] if channels == 1 else pixels
