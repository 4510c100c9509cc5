"""A small text model on disk: random BERT, word tokenizer, and texts made of its words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertForTokenClassification, PreTrainedTokenizerFast

from tests.models import randomise, tiny, tiny_bert

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(f"w{index}" for index in range(97 - len(SPECIAL)))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with as many entries as `tiny_bert` has embeddings."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_model_folder(folder: Path, labels: int = 0, **changes: Any) -> str:
    """Save a random model with its tokenizer as `transformers` does; the folder's path."""
    tiny_bert(labels=labels, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def texts(count: int, seed: int = 0) -> list[str]:
    """Different random sentences of 3 to 12 words."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choice(WORDS, generator.integers(3, 13)))] = None
    return list(found)


def write_lines(file: Path, lines: list[str]) -> str:
    """A text file with one text a line; its path."""
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def tiny_tagger_folder(folder: Path, tags: list[str]) -> str:
    """Save a random tagger of words with its tokenizer; the folder's path."""
    names = dict(enumerate(tags))
    config = tiny_bert(id2label=names, label2id={name: index for index, name in names.items()}).config
    randomise(BertForTokenClassification(config)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_language_model_folder(folder: Path, model_type: str = "llama", *, begin: bool = False, **changes: Any) -> str:
    """Save a random causal language model with a word tokenizer, which puts a token before every text if so asked."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*SPECIAL, *WORDS))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tiny(model_type, language_model=True, **changes).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[CLS]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return str(folder)


def running_text(file: Path, lines: int = 240, seed: int = 3) -> str:
    """A text file of random sentences, some 1,800 words; its path."""
    return write_lines(file, texts(lines, seed))
