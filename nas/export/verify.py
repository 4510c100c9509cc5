"""Checks of exported folders: every artefact is loaded again in a fresh process and compared with its model.

Compared are sentences' outputs, and those of tokens that are no padding.

A fresh process, because what is loaded there can lean on nothing that the exporting process still holds: no patched
module, no cached graph, no file that is not in the folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.export.artefacts import ARTEFACTS, Artefact, Rule
from nas.export.reference import Arrays, Reference

# Files of the ONNX graphs by precision.
GRAPHS: Mapping[str, str] = {row.precision: row.file for row in ARTEFACTS.values() if row.format == "onnx"}
_TIMEOUT_S = 900


class ExportError(RuntimeError):
    """An exported artefact does not compute what the model computes; the message says which and where."""


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How far artefacts may be from the model that they were made from.

    Those of integers find what is broken, not what is good: how good an artefact is, its metrics tell.

    Args:
        difference: Largest absolute difference of an fp32 output, relative to the output's largest absolute value.
        half_difference: The same of fp16.
        int8_cosine: Smallest cosine between all outputs of an int8 artefact and of the fp32 model.
        low_cosine: The same where scales were found in advance, or weights have four bits.
    """

    difference: float = 1e-4
    half_difference: float = 0.03
    int8_cosine: float = 0.9
    low_cosine: float = 0.7

    def of(self, precision: str) -> float:
        """The limit for a precision."""
        limits = {"fp32": self.difference, "fp16": self.half_difference, "int8": self.int8_cosine}
        return limits.get(precision, self.low_cosine)


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
        absolute: Largest absolute difference of any value, whichever rule decides; None where texts are compared.
    """

    artefact: str
    output: str
    shape: tuple[int, ...]
    rule: Rule
    value: float
    limit: float
    absolute: float | None = None

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
    return absolute_difference(found, expected) / (float(np.abs(expected).max(initial=0.0)) or 1.0)


def absolute_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))


def whole_cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Cosine of all values as one vector; NaN where shapes differ.

    So samples count by the length of their outputs: which way the logits of a classifier in doubt point says nothing.
    """
    if found.shape != expected.shape:
        return float("nan")
    a, b = (array.reshape(-1).astype(np.float64) for array in (found, expected))
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def at_tokens(values: NDArray[Any], inputs: Arrays) -> NDArray[Any]:
    """Of an output with one row a token, ``(samples, tokens, width)``, the rows of tokens that are no padding.

    What a model says of padding is left open: where a window holds padding alone, runtimes differ.

    Args:
        values: An output; of another shape than that, it is given back as it is.
        inputs: What it was computed from; without an ``attention_mask`` nothing is padding.

    Returns:
        ``(real tokens, width)``, or the output itself.
    """
    mask = inputs.get("attention_mask")
    if mask is None or values.ndim != 3 or values.shape[:2] != mask.shape:
        return values
    real: NDArray[Any] = values[mask.astype(bool)]
    return real


def check_artefact(path: Path, artefact: Artefact, reference: Reference, limit: float) -> list[Check]:
    """Run a model in its own runtime on the reference's inputs."""
    from latency_models.backends.base import make_backend
    from latency_models.device import Device

    provider = "cuda" if artefact.backend == "tensorrt" else "cpu"
    backend = make_backend(Device(artefact.backend, artefact.backend, provider=provider))
    compare = whole_cosine if artefact.rule == "cosine" else scaled_difference
    checks = []
    for inputs, expected in zip(reference.inputs, reference.outputs, strict=True):
        outputs = backend.compile(str(path), inputs).outputs()
        shape = next(iter(inputs.values())).shape
        for name, value in expected.items():
            found, wanted = (at_tokens(each, inputs) for each in (outputs.get(name, np.empty(0)), value))
            absolute = absolute_difference(found, wanted)
            checks.append(Check(path.name, name, shape, artefact.rule, compare(found, wanted), limit, absolute))
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
        found, wanted = at_tokens(found, inputs), at_tokens(expected, inputs)
        value, absolute = scaled_difference(found, wanted), absolute_difference(found, wanted)
        checks.append(Check("transformers", "first output", shape, "difference", value, limit, absolute))
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
    parts = [key for key, row in ARTEFACTS.items() if (directory / row.file).is_file()]
    parts += ["tokenizer"]
    if (directory / "model.safetensors").is_file():
        parts += ["transformers"]
    with tempfile.TemporaryDirectory() as folder:
        reference.save(Path(folder))
        checks: list[Check] = []
        # They mostly wait for imports: a second one beside the first takes little from it, more would take memory.
        with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
            each = pool.map(lambda part: _in_fresh_process(part, directory, Path(folder), tolerances), parts)
            for found in each:
                checks += found
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
    """The checks of one part: ``tokenizer``, ``transformers``, or an artefact's key."""
    if part == "tokenizer":
        return check_tokenizer(directory, reference)
    if part == "transformers":
        return check_transformers(directory, reference, tolerances.difference)
    artefact = ARTEFACTS[part]
    return check_artefact(directory / artefact.file, artefact, reference, tolerances.of(artefact.precision))


def main(arguments: Sequence[str]) -> None:
    """Entry point of the fresh process; prints the checks as one line of JSON."""
    part, directory, reference, settings = arguments
    checks = run_part(part, Path(directory), Reference.load(Path(reference)), Tolerances(**json.loads(settings)))
    print(json.dumps([asdict(check) for check in checks]))


if __name__ == "__main__":
    main(sys.argv[1:])
