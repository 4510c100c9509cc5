"""What the teacher says about every sample, computed once, kept on disk, and read by memory mapping."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.tasks.attention import ATTENTION
from nas.tasks.cache import Arrays, cached_arrays, content_key
from nas.tasks.next_token import NEXT_TOKEN, questions
from nas.tasks.placement import CPU, moved, placed
from nas.tasks.task import Samples, Task, main_output
from search_spaces.library import model_fingerprint

if TYPE_CHECKING:
    from nas.progress import Progress

# Raise it when the same inputs come to be stored differently: older caches are then left alone.
_FORMAT = "1"
_PER_TOKEN = ("hidden", "hidden_states", *ATTENTION)


class TeacherOutputs:
    """The teacher's outputs on a task's splits.

    A split is run through the teacher when it is first asked for, unless an earlier run left its outputs: they are
    known by the teacher's weights, the tokens of the split and the outputs' names. Per-token states are kept in fp16
    without padding, everything else in fp32.

    Args:
        task: Gives the samples and the meaning of outputs.
        names: Outputs to keep beyond the task's main one: ``hidden``, ``hidden_states``, ``queries``, ``keys``,
            ``values`` (see `Task.outputs`).
        directory: Where outputs are kept between runs; None keeps them in a temporary folder for as long as this
            object lives.
        model: The teacher; by default the task's own model, loaded when there is something to compute. It must not be
            one whose projections a supernet has made elastic.
        batch_size: Samples of one teacher pass.
        place: Where it runs.
    """

    def __init__(
        self,
        task: Task,
        names: Collection[str] = (),
        directory: str | Path | None = None,
        model: nn.Module | None = None,
        batch_size: int = 64,
        place: torch.device = CPU,
    ) -> None:
        self.task = task
        self.place = place
        self.names = (main_output(task), *(name for name in _PER_TOKEN if name in names))
        self.batch_size = batch_size
        self._model = model
        self._directory = Path(directory) if directory is not None else Path(tempfile.mkdtemp(prefix="teacher-"))
        if directory is None:
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        self._arrays: dict[str, Arrays] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Name of the teacher's content: its weights, and the settings that change what they compute."""
        return model_fingerprint(self._loaded)

    @cached_property
    def _loaded(self) -> nn.Module:
        return self._model if self._model is not None else self.task.load_model()

    def prepare(self, splits: Collection[str], progress: Progress | None = None) -> None:
        """Compute now what these splits lack, so that later steps do not wait for the teacher."""
        for split in splits:
            self.arrays(split, progress)

    def arrays(self, split: str, progress: Progress | None = None) -> Arrays:
        """All outputs of a split: ``(samples, ...)``, and per-token ones ``(tokens, ...)``, token by token.

        Samples that have as many tokens each, such as images, keep theirs together: ``(samples, tokens, ...)``.
        """
        if split not in self._arrays:
            key = content_key(
                [
                    _FORMAT,
                    self.fingerprint,
                    self.task.samples.fingerprint(split),
                    self.task.output_settings,
                    *self.names,
                ]
            )
            self._arrays[split] = cached_arrays(
                self._directory / "teacher", key, lambda folder: self._compute(folder, split, progress)
            )
        return self._arrays[split]

    def main(self, split: str) -> Mapping[str, NDArray[Any]]:
        """The output that metrics read, for a whole split, by its name."""
        name = self.names[0]
        return {name: self.arrays(split)[name]}

    def inputs(self, split: str, rows: NDArray[np.int64], samples: Samples | None = None) -> dict[str, Tensor]:
        """A student's inputs for some samples, and what it must be asked beside them to be compared with the teacher.

        Args:
            split: Name of the split.
            rows: Which of its samples.
            samples: Other samples than the task's own, such as perturbed ones.
        """
        batch = (samples or self.task.samples).batch(split, rows)
        if self.names[0] != NEXT_TOKEN:
            return batch
        return {**batch, **questions(self.arrays(split)[NEXT_TOKEN][rows])}

    def batch(self, split: str, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Outputs of some samples as a student would give them: per-token states are padded with zeros."""
        arrays = self.arrays(split)
        offsets = self.task.samples.offsets(split)
        outputs = {}
        for name in self.names:
            if name not in _PER_TOKEN:
                outputs[name] = torch.from_numpy(np.array(arrays[name][rows], dtype=np.float32))
                continue
            found = torch.from_numpy(_token_states(arrays[name], rows, offsets))
            # Stored token by token, (tokens, blocks, hidden); students give (blocks, samples, tokens, hidden).
            outputs[name] = found.permute(2, 0, 1, 3) if name == "hidden_states" else found
        return outputs

    def _compute(self, folder: Path, split: str, progress: Progress | None) -> None:
        with placed(self._loaded, self.place) as model:
            files = self._run(model, folder, split, progress)
        for file in files.values():
            if not np.isfinite(file).all():
                raise ValueError(f"the teacher's outputs on {split!r} must be finite, but some are not. Is it in fp16?")
            file.flush()

    def _run(self, model: nn.Module, folder: Path, split: str, progress: Progress | None) -> dict[str, Any]:
        """A split's outputs, batch by batch into files."""
        samples = self.task.samples
        offsets = samples.offsets(split)
        files: dict[str, Any] = {}
        for rows in samples.order(split, self.batch_size):
            batch = samples.batch(split, rows)
            with torch.inference_mode():
                found = self.task.outputs(model, moved(batch, self.place), self.names)
            outputs = moved(found, CPU)
            for name in self.names:
                values, places, count = outputs[name], rows, samples.size(split)
                if name in _PER_TOKEN:
                    values = (values.permute(1, 2, 0, 3) if name == "hidden_states" else values).half()
                if name in _PER_TOKEN and offsets is not None:
                    values = values[batch["attention_mask"].bool()]
                    places = np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])
                    count = int(offsets[-1])
                if name not in files:
                    files[name] = np.lib.format.open_memmap(
                        folder / f"{name}.npy", "w+", values.numpy().dtype, (count, *values.shape[1:])
                    )
                files[name][places] = values.numpy()
            if progress is not None:
                progress.advance(text=f"teacher on {split}")
        return files


def _token_states(
    stored: NDArray[Any], rows: NDArray[np.int64], offsets: NDArray[np.int64] | None
) -> NDArray[np.float32]:
    """States of some samples, ``(samples, tokens, ...)``; those that are shorter are padded with zeros."""
    if offsets is None:
        return np.array(stored[rows], dtype=np.float32)
    starts, lengths = offsets[rows], offsets[rows + 1] - offsets[rows]
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns < lengths[:, None]
    states = np.array(stored[np.where(mask, starts[:, None] + columns, starts[:, None])], dtype=np.float32)
    states[~mask] = 0.0
    return states
