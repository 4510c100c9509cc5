"""Checks of exported folders: every artefact is loaded again in a fresh process and compared with its model.

A fresh process, because what is loaded there can lean on nothing that the exporting process still holds: no patched
module, no cached graph, no file that is not in the folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.tasks.task import Task

Arrays = Mapping[str, NDArray[Any]]
Rule = Literal["difference", "cosine", "tokens"]
GRAPHS: Mapping[str, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx"}
_TIMEOUT_S = 600


class ExportError(RuntimeError):
    """An exported artefact does not compute what the model computes; the message says which and where."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far artefacts may be from the model that they were made from.

    Args:
        difference: Largest absolute difference of an fp32 output, relative to the output's largest absolute value.
        int8_cosine: Smallest mean cosine between outputs of an int8 graph and of the fp32 model.
    """

    difference: float = 1e-4
    int8_cosine: float = 0.9


@dataclass(frozen=True, slots=True)
class Check:
    """One output of one artefact at one shape.

    Args:
        artefact: File name, or ``transformers`` or ``tokenizer``.
        output: Name of the output.
        shape: Shape of the inputs: (samples, tokens).
        rule: ``difference`` (at most ``limit``, relative to the output's scale), ``cosine`` (at least ``limit``), or
            ``tokens`` (number of texts that are tokenised differently).
        value: What was found.
        limit: What is allowed.
    """

    artefact: str
    output: str
    shape: tuple[int, ...]
    rule: Rule
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value keeps the limit; NaN does not."""
        return self.value >= self.limit if self.rule == "cosine" else self.value <= self.limit

    def __str__(self) -> str:
        where = f"{self.artefact}: {self.output} at {' x '.join(map(str, self.shape))}"
        sign = ">=" if self.rule == "cosine" else "<="
        return f"{where}: {self.rule} must be {sign} {self.limit:g}, but is {self.value:.3g}"


def scaled_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference relative to the largest absolute expected value; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max() / scale)


def mean_cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Mean cosine of the last axis' vectors; NaN where shapes differ."""
    if found.shape != expected.shape:
        return float("nan")
    a, b = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (found, expected))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-30)))


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
        """Run the model on batches of a split: its shortest, middle and longest texts, and one text alone."""
        import torch

        batches = list(task.samples.batches(split, 4))
        middle = batches[len(batches) // 2]
        alone = {name: value[:1] for name, value in middle.items()}
        chosen = [batches[0], middle, batches[-1], alone]
        deployed = task.deployable(model).eval()
        with torch.inference_mode():
            outputs = [deployed(**batch) for batch in chosen]
            first = [model(**batch, return_dict=True)[0].numpy() for batch in chosen]
        longest = task.samples.max_length
        texts = task.samples.examples[split].texts[:8] if longest else ()
        return cls(
            inputs=tuple(_arrays(batch) for batch in chosen),
            outputs=tuple(_arrays(dict(zip(task.output_names, values, strict=True))) for values in outputs),
            first=tuple(first),
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


def check_graph(path: Path, reference: Reference, rule: Rule, limit: float) -> list[Check]:
    """Run an ONNX graph in ONNX Runtime on the reference's inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    taken = {node.name for node in session.get_inputs()}
    compare = mean_cosine if rule == "cosine" else scaled_difference
    checks = []
    for inputs, expected in zip(reference.inputs, reference.outputs, strict=True):
        feeds = {name: value for name, value in inputs.items() if name in taken}
        found = dict(zip(names, session.run(names, feeds), strict=True))
        shape = next(iter(inputs.values())).shape
        checks += [
            Check(path.name, name, shape, rule, compare(found.get(name, np.empty(0)), value), limit)
            for name, value in expected.items()
        ]
    return checks


def check_transformers(directory: Path, reference: Reference, limit: float) -> list[Check]:
    """Load the folder's `transformers` model and run it on the reference's inputs."""
    import torch

    from search_spaces.checkpoint import load_subnet

    model = load_subnet(directory)
    checks = []
    for inputs, expected in zip(reference.inputs, reference.first, strict=True):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            found = model(**tensors, return_dict=True)[0].numpy()
        shape = next(iter(inputs.values())).shape
        checks.append(
            Check("transformers", "first output", shape, "difference", scaled_difference(found, expected), limit)
        )
    return checks


def check_tokenizer(directory: Path, reference: Reference) -> list[Check]:
    """Tokenise the reference's texts with the folder's tokenizer alone; nothing where it has no ``tokenizer.json``."""
    path = directory / "tokenizer.json"
    if not path.is_file() or not reference.texts:
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(reference.max_length)
    found = [tuple(tokenizer.encode(text).ids) for text in reference.texts]
    different = sum(own != expected for own, expected in zip(found, reference.tokens, strict=True))
    return [Check("tokenizer", "input_ids", (len(found),), "tokens", float(different), 0.0)]


def verify(directory: Path, reference: Reference, tolerances: Tolerances | None = None) -> tuple[Check, ...]:
    """Check every artefact of an exported folder, each in a fresh process.

    Args:
        directory: The folder.
        reference: What the model itself said.
        tolerances: What is allowed.

    Returns:
        All checks, all of them passed.

    Raises:
        ExportError: An artefact cannot be loaded, or differs; the message tells its worst place.
    """
    tolerances = tolerances or Tolerances()
    parts = [part for part, name in GRAPHS.items() if (directory / name).is_file()]
    parts += ["tokenizer", "transformers"]
    with tempfile.TemporaryDirectory() as folder:
        reference.save(Path(folder))
        checks: list[Check] = []
        for part in parts:
            checks += _in_fresh_process(part, directory, Path(folder), tolerances)
            if failed := [check for check in checks if not check.passed]:
                more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
                raise ExportError(f"export: {_worst(failed)}{more}.")
    return tuple(checks)


def _worst(failed: Sequence[Check]) -> Check:
    return max(failed, key=lambda check: -check.value if check.rule == "cosine" else check.value)


def _in_fresh_process(part: str, directory: Path, reference: Path, tolerances: Tolerances) -> list[Check]:
    settings = json.dumps(asdict(tolerances))
    # -P: a file of the user's that happens to be named like one of our packages must not be imported instead.
    command = [sys.executable, "-P", "-m", "nas.export.verify", part, str(directory), str(reference), settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"export: checking {part} of {directory} took more than {_TIMEOUT_S} s.") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"export: {part} of {directory} cannot be loaded again: {reason}")
    return [Check(**{**check, "shape": tuple(check["shape"])}) for check in json.loads(lines[-1])]


def run_part(part: str, directory: Path, reference: Reference, tolerances: Tolerances) -> list[Check]:
    """The checks of one artefact: ``fp32``, ``int8``, ``tokenizer`` or ``transformers``."""
    if part == "tokenizer":
        return check_tokenizer(directory, reference)
    if part == "transformers":
        return check_transformers(directory, reference, tolerances.difference)
    if part == "fp32":
        return check_graph(directory / GRAPHS[part], reference, "difference", tolerances.difference)
    return check_graph(directory / GRAPHS[part], reference, "cosine", tolerances.int8_cosine)


def main(arguments: Sequence[str]) -> None:
    """Entry point of the fresh process; prints the checks as one line of JSON."""
    part, directory, reference, settings = arguments
    checks = run_part(part, Path(directory), Reference.load(Path(reference)), Tolerances(**json.loads(settings)))
    print(json.dumps([asdict(check) for check in checks]))


def _arrays(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in dict(tensors).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
