"""A tiny sentence encoder in a folder, texts for it, and a subnet of it, exported once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import PreTrainedTokenizerFast

from nas.export.export import ExportedModel, export_candidate
from nas.tasks.data import TextData
from nas.tasks.text import SentenceEmbedding
from search_spaces.calibrate import calibrate
from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig
from search_spaces.supernet import Supernet
from tests.models import tiny_batches, tiny_bert, tiny_space

WORDS = [f"word{index}" for index in range(97 - 5)]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    model: Any
    subnet: SubnetConfig
    space: SearchSpace
    task: SentenceEmbedding
    result: ExportedModel


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("model")
    teacher = tiny_bert()
    teacher.save_pretrained(folder)
    save_tokenizer(folder)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(2, 16))) for _ in range(60)]
    (folder / "texts.txt").write_text("\n".join(lines))
    data = TextData(path=str(folder / "texts.txt"), train=16, calibration=8, validation=8, test=24)
    task = SentenceEmbedding(model=str(folder), data=data, max_length=16)
    space = tiny_space(teacher)
    supernet = Supernet(teacher, calibrate(teacher, tiny_batches(), space), space)
    subnet = space.sample(np.random.default_rng(4), 1)[0]
    model = supernet.extract(subnet)
    result = export_candidate(
        model, subnet, space.shape, task, tmp_path_factory.mktemp("runs") / "s1", teacher="tiny",
        metrics={"measured": {"onnx fp32": {"p50_ms": 1.5, "speedup": {"value": 2.0, "low": 1.9, "high": 2.1}},
                              "onnx int8": {"cosine": 0.89}}, "device": {"cpu": "test"}},
    )  # fmt: skip
    return Exported(model, subnet, space, task, result)
