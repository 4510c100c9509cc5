"""Pretrained models and tokenizers from a local folder or the Hugging Face hub, with errors that name the mend."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from search_spaces.families import family_of_type
from search_spaces.shapes import most_positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PoolingMode = Literal["mean", "cls", "max"]
_VOCABULARIES = ("tokenizer.json", "vocab*", "merges*", "*.model", "*.codes", "*.tiktoken")
# Keys of `1_Pooling/config.json` as sentence-transformers has long written them.
_POOLING_FLAGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token states become one embedding.

    Args:
        mode: ``mean`` over the attention mask, ``cls`` (the first token) or ``max`` over the attention mask.
        normalize: Whether embeddings have L2 norm 1.

    Raises:
        ValueError: The mode is unknown.
    """

    mode: PoolingMode = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.mode not in get_args(PoolingMode):
            raise ValueError(f"`mode` must be one of {', '.join(get_args(PoolingMode))}, but got {self.mode!r}.")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name; it gives token types only where the model beside it reads them.

    Raises:
        FileNotFoundError, ValueError: There is none.
    """
    from transformers import AutoTokenizer

    _check_place(path)
    try:
        with _quietly():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # Whatever is wrong with a folder: truncated weights, sizes that are texts or 0.
        place = Path(path).expanduser()
        lacking = (place / "config.json").is_file() and not has_tokenizer(place)
        raise ValueError(_no_tokenizer(path) if lacking else _cannot_load("tokenizer", path, error)) from error
    # Of a folder without its files `transformers` makes one that knows its special tokens only: texts of unknown words.
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ValueError(_no_tokenizer(path))
    if not _reads_token_types(path):
        # A BERT's tokenizer beside ModernBERT or DistilBERT: torch passes over types, but no graph takes them.
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def has_tokenizer(place: Path) -> bool:
    """Whether a folder has a tokenizer's vocabulary in one of the forms that `transformers` reads."""
    return any(any(place.glob(pattern)) for pattern in _VOCABULARIES)


def _no_tokenizer(path: str) -> str:
    return (
        f"`model.path` must hold the model's tokenizer, but {path!r} has no vocabulary (tokenizer.json, vocab.txt, "
        "vocab.json with merges.txt or a SentencePiece .model). Copy the files of the model that it was made of into "
        "the folder, or write them with the tokenizer's save_pretrained."
    )


def _reads_token_types(path: str) -> bool:
    """Whether a model has embeddings of token types; where its configuration cannot be read, its loading tells why."""
    from transformers import AutoConfig

    try:
        return hasattr(AutoConfig.from_pretrained(path), "type_vocab_size")
    except Exception:  # noqa: BLE001 - whatever is wrong with the folder
        return True


def load_config(path: str) -> Any:
    """The configuration of a folder's or hub name's model.

    Raises:
        FileNotFoundError, ValueError: There is none.
    """
    from transformers import AutoConfig

    _check_place(path)
    try:
        with _quietly():
            return AutoConfig.from_pretrained(path)
    except Exception as error:  # Whatever is wrong with a folder: truncated weights, sizes that are texts or 0.
        raise ValueError(_cannot_load("model", path, error)) from error


def load_image_processor(path: str) -> Any:
    """The image processor of a folder or hub name.

    Raises:
        FileNotFoundError, ValueError: There is none.
    """
    from transformers import AutoImageProcessor

    _check_place(path)
    try:
        with _quietly():
            return AutoImageProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
    except Exception as error:  # Whatever is wrong with a folder: truncated weights, sizes that are texts or 0.
        raise ValueError(_cannot_load("image processor", path, error)) from error


def load_encoder(path: str) -> PreTrainedModel:
    """The model without a task head, in fp32 and evaluation mode.

    Raises:
        FileNotFoundError, ValueError: There is none, or weights are missing.
    """
    from transformers import AutoModel

    # A pooler on top of BERT is not what sentence embeddings read, and many encoders are published without one.
    return _load(AutoModel, path, may_miss=("pooler.",))


def load_language_model(path: str) -> PreTrainedModel:
    """A causal language model, in fp32 and evaluation mode.

    Raises:
        FileNotFoundError, ValueError: There is none, or weights are missing.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, path)


def load_classifier(
    path: str,
    classes: Sequence[str] | None = None,
    *,
    new_head: bool = False,
    problem: str = "single_label",
    kind: str = "AutoModelForSequenceClassification",
) -> PreTrainedModel:
    """A classifier, in fp32 and evaluation mode.

    Args:
        path: Folder or hub name.
        classes: Names of the classes for a new head.
        new_head: Whether a model without a trained head gets a fresh one (seed 0), to be fine-tuned.
        problem: What a new head's logits mean: ``single_label``, ``multi_label`` or ``regression``.
        kind: The class of `transformers` that loads it; others classify tokens or images.

    Raises:
        FileNotFoundError, ValueError: There is none, or it has no trained head and none was asked for.
    """
    import torch
    import transformers

    loader = getattr(transformers, kind)
    if not new_head:
        return _load(loader, path)
    options: dict[str, Any] = {}
    if classes:
        options = {"id2label": dict(enumerate(classes)), "label2id": {n: i for i, n in enumerate(classes)}}
    if problem != "single_label":
        options["problem_type"] = {"multi_label": "multi_label_classification"}.get(problem, problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _load(loader, path, may_miss=("classifier.", "score.", "pooler."), **options)


def check_positions(model: PreTrainedModel, max_length: int) -> PreTrainedModel:
    """The same model, once it is known to have a position for every token that is kept of a text.

    Raises:
        ValueError: It has fewer.
    """
    most = most_positions(model)
    if most is not None and max_length > most:
        raise ValueError(f"`task.max_length` must be at most {most} (the model's positions), but got {max_length}.")
    return model


def read_pooling(path: str) -> Pooling:
    """The pooling that sentence-transformers wrote beside the model; mean and L2 where it wrote nothing.

    Raises:
        ValueError: The model pools in a way that the project does not know, or adds layers after pooling.
    """
    modules = _read_json(path, "modules.json")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules or []]
    if extra := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(f"{path}: modules after pooling must be Normalize only, but got {extra[0]}.")
    normalize = modules is None or "Normalize" in kinds
    folder = next((m["path"] for m in modules or [] if str(m.get("type", "")).endswith("Pooling")), "1_Pooling")
    settings = _read_json(path, f"{folder}/config.json")
    if settings is None:
        return Pooling(normalize=normalize)
    chosen = [mode for key, mode in _POOLING_FLAGS.items() if settings.get(key)]
    if isinstance(mode := settings.get("pooling_mode"), str):
        chosen = [mode]
    flags = [
        key for key, on in settings.items() if key.startswith("pooling_mode_") and on and key not in _POOLING_FLAGS
    ]
    if len(chosen) != 1 or flags or chosen[0] not in get_args(PoolingMode):
        raise ValueError(
            f"{path}: pooling must be one of {', '.join(get_args(PoolingMode))}, but got {', '.join(chosen + flags)}."
        )
    known: PoolingMode = next(mode for mode in get_args(PoolingMode) if mode == chosen[0])
    return Pooling(known, normalize)


def _load(kind: Any, path: str, may_miss: tuple[str, ...] = (), **options: Any) -> PreTrainedModel:
    import torch

    config = load_config(path)
    if getattr(config, "is_encoder_decoder", False):  # Their decoder would need texts of its own.
        try:
            family_of_type(str(config.model_type))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quietly():
            model, report = kind.from_pretrained(path, dtype=torch.float32, **options)
    except Exception as error:  # Whatever is wrong with a folder: truncated weights, sizes that are texts or 0.
        raise ValueError(_cannot_load("model", path, error)) from error
    for name, stored, wanted in sorted(report["mismatched_keys"]):
        if not any(part in name for part in may_miss):
            raise ValueError(
                f"{path}: the weights must be of the sizes that config.json gives, but {name!r} is {tuple(stored)} and "
                f"not {tuple(wanted)}. Are both files of one model?"
            )
    missing = sorted(name for name in report["missing_keys"] if not any(part in name for part in may_miss))
    if missing:
        raise ValueError(
            f"{path}: the checkpoint must hold every weight of {type(model).__name__}, but {missing[0]!r} and "
            f"{len(missing) - 1} more are missing. Fine-tune the model for the task first."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tables and hints that `transformers` logs while it loads: what matters is told in our own words."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_place(path: str) -> None:
    place = Path(path).expanduser()
    if place.is_file():
        raise ValueError(
            f"`model.path` must be a folder or a hub name, with tokenizer and classes, but {path!r} is a "
            "file: give the teacher's folder, and an .onnx file as candidate=FILE or behind the first of `models`."
        )
    if not place.is_dir() and (place.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1):
        raise FileNotFoundError(f"`model.path` must be an existing folder or a hub name, but there is no {path!r}.")


def _cannot_load(what: str, path: str, error: BaseException) -> str:
    if (Path(path).expanduser() / "subnet.json").is_file():
        return (
            f"`model.path` must be the teacher, but {path!r} holds a subnet that was made of one: give the teacher's "
            "folder, and to `nas evaluate` the subnet as candidate=FOLDER."
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"`model.path` must be a folder of `transformers` or a hub name; no {what} in {path!r}: {reason[:300]}"


def _read_json(path: str, name: str) -> Any:
    from transformers.utils.hub import cached_file

    file = cached_file(
        path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
