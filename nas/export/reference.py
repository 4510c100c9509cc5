"""What a model says about real inputs of several shapes: what its exported artefacts are compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.tasks.task import Task

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Reference:
    """What the model itself says about real inputs of several shapes.

    Args:
        inputs: One mapping per shape: input name -> array.
        outputs: Outputs of the deployed model, one mapping per shape.
        first: First output of the `transformers` model itself, one array per shape.
        texts: Texts that the tokenizer must cut as before.
        tokens: Their token ids.
        max_length: Tokens kept of a text.
    """

    inputs: tuple[Arrays, ...]
    outputs: tuple[Arrays, ...]
    first: tuple[NDArray[Any], ...]
    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    max_length: int = 128

    @classmethod
    def from_model(cls, model: nn.Module, task: Task, split: str = "test") -> Reference:
        """Run the model on batches of a split: its shortest, middle and longest texts, and one text alone.

        Blocks of running text, which are all as long, are shortened instead: a graph must take any length.
        """
        import torch

        order = task.samples.order(split, 4)
        first, middle, last = (task.samples.batch(split, order[at]) for at in (0, len(order) // 2, -1))
        if task.kind == "causal_lm":
            first, middle = (_shortened(batch, share) for batch, share in ((first, 8), (middle, 2)))
            last = {name: value[:1] for name, value in last.items()}
        alone = {name: value[:1] for name, value in middle.items()}
        chosen = [first, middle, last, alone]
        deployed = task.deployable(model).eval()
        with torch.inference_mode():
            outputs = [deployed(**batch) for batch in chosen]
            heads = [model(**batch, return_dict=True)[0].numpy() for batch in chosen]
        longest = task.samples.max_length
        texts = task.samples.examples[split].texts[:8] if longest else ()
        return cls(
            inputs=tuple(as_numpy(batch) for batch in chosen),
            outputs=tuple(as_numpy(dict(zip(task.output_names, values, strict=True))) for values in outputs),
            first=tuple(heads),
            texts=texts,
            tokens=tuple(tuple(task.tokenizer(text, truncation=True, max_length=longest).input_ids) for text in texts),
            max_length=longest,
        )

    def save(self, directory: Path) -> None:
        """Write as arrays and JSON."""
        arrays: dict[str, NDArray[Any]] = {}
        for index, (inputs, outputs, first) in enumerate(zip(self.inputs, self.outputs, self.first, strict=True)):
            arrays |= {f"{index}/input/{name}": value for name, value in inputs.items()}
            arrays |= {f"{index}/output/{name}": value for name, value in outputs.items()}
            arrays[f"{index}/first/first"] = first
        np.savez(directory / "reference.npz", **arrays)  # type: ignore[arg-type]
        text = {"texts": self.texts, "tokens": self.tokens, "max_length": self.max_length}
        (directory / "reference.json").write_text(json.dumps(text), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Reference:
        """Read what ``save`` wrote."""
        with np.load(directory / "reference.npz", allow_pickle=False) as stored:
            arrays = dict(stored)
        text = json.loads((directory / "reference.json").read_text(encoding="utf-8"))
        count = 1 + max(int(key.split("/")[0]) for key in arrays)

        def part(index: int, kind: str) -> Arrays:
            start = f"{index}/{kind}/"
            return {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}

        return cls(
            inputs=tuple(part(index, "input") for index in range(count)),
            outputs=tuple(part(index, "output") for index in range(count)),
            first=tuple(part(index, "first")["first"] for index in range(count)),
            texts=tuple(text["texts"]),
            tokens=tuple(tuple(ids) for ids in text["tokens"]),
            max_length=text["max_length"],
        )


def _shortened(batch: Mapping[str, Tensor], share: int) -> dict[str, Tensor]:
    """The first tokens of every sample: one in so many."""
    return {name: value[:, : max(2, value.shape[1] // share)] for name, value in batch.items()}


def as_numpy(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Arrays:
    """Tensors as arrays, by their names."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in dict(tensors).items()}
