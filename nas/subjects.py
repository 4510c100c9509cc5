"""Models that are judged beside each other: what they are called, and what must be alike for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_COMPARED_TEXTS = 64
_LISTED = 8


@dataclass(frozen=True)
class Subject:
    """A model that is judged.

    Args:
        name: What people call it.
        path: Its folder, ONNX file or hub name.
        kind: ``transformers`` or ``onnx``.
        module: Its `transformers` model, where the path or the folder around it has one.
        graph: Its ONNX file, where it has one.
    """

    name: str
    path: str
    kind: str
    module: nn.Module | None
    graph: Path | None


def check_there(option: str, path: str, root: Path) -> None:
    """Refuse a model that is not there, unless it may be one of the hub.

    Args:
        option: Which option names it.
        path: A folder, an ONNX file or a hub name.
        root: Below which studies have theirs.

    Raises:
        FileNotFoundError: The message says which models there are.
    """
    place = Path(path).expanduser()
    elsewhere = place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or place.suffix == ".onnx"
    if not place.exists() and (elsewhere or (path.count("/") == 1 and place.parent.is_dir())):
        raise FileNotFoundError(
            f"`{option}` must be a model's folder, an .onnx file or a hub name, but {path!r} is not there; "
            f"{models_there(path, root)}."
        )


def models_there(path: str, root: Path) -> str:
    """Which models are beside a path that holds none, or else below the root of studies."""
    beside = Path(path).expanduser().parent
    found = sorted({*beside.glob("*.onnx"), *(file.parent for file in beside.glob("*/config.json"))})
    found = found if beside != Path() and found else sorted(file.parent for file in root.glob("*/models/*/config.json"))
    more = ", ..." if len(found) > _LISTED else ""
    return f"there are {', '.join(map(str, found[:_LISTED]))}{more}" if found else f"there are none below {root}"


def told_apart(paths: Sequence[str]) -> list[str | None]:
    """Names for models that would otherwise be called alike: as many last parts of their paths as tell them apart.

    None where the usual name does: a folder's own, a graph's with its folder's.
    """
    parts = {path: [part for part in Path(path.removesuffix(".onnx")).parts if part != "/"] for path in paths}

    def name(path: str, more: int = 0) -> str:
        return "/".join(parts[path][-(1 + path.endswith(".onnx") + more) :])

    names: list[str | None] = []
    for path in paths:
        twins, more = [other for other in parts if other != path and name(other) == name(path)], 0
        while more < len(parts[path]) and any(name(other, more) == name(path, more) for other in twins):
            more += 1
        names.append(name(path, more) if twins else None)
    return names


def check_alike(model: Any, teacher: Any, path: str) -> None:
    """Classes are compared by their place among the logits, so both heads must have them in one order.

    Raises:
        ValueError: They have not.
    """
    own, other = (getattr(side.config, "id2label", None) or {} for side in (model, teacher))
    if own != other and sorted(own.values()) == sorted(other.values()):
        at = next(place for place in own if own[place] != other.get(place))
        raise ValueError(
            f"{path}: the head must have its classes in the order of the teacher's, but class {at} is {own[at]!r} and "
            f"not {other.get(at)!r}."
        )


def check_tokens(own: Any, task: Any, path: str) -> None:
    """All models are given the teacher's tokens, so a model's tokenizer must give the same, where it has one.

    Raises:
        ValueError: It does not.
    """
    from nas.tasks.models import has_tokenizer
    from nas.tasks.samples import TextSamples

    place = Path(path)
    if not isinstance(task.samples, TextSamples) or (place.is_dir() and not has_tokenizer(place)):
        return
    texts = list(task.samples.examples["test"].texts[:_COMPARED_TEXTS])
    ids = [side.tokenizer(texts, truncation=True, max_length=task.max_length)["input_ids"] for side in (own, task)]
    if ids[0] != ids[1]:
        raise ValueError(
            f"{path}: a model must have its teacher's tokenizer, because all get the same tokens, but its own gives "
            "others on the test split. Judge it by itself, with model.path."
        )


def existing_graph(folder: Path) -> Path | None:
    """The fp32 graph that an export left in a folder; it was verified against the folder's model there."""
    from search_spaces.checkpoint import SUBNET_FILE

    graph = folder / "model.onnx"
    return graph if graph.is_file() and (folder / SUBNET_FILE).is_file() else None
