"""Causal language models on running text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from latency_models.backends.causal import CausalModel
from nas.evaluation.language import LANGUAGE, language_rows
from nas.evaluation.metrics import SAMPLES, Measure, Tables, computed
from nas.tasks.attention import attention_outputs
from nas.tasks.blocks import BlockSamples, read_blocks
from nas.tasks.data import TextData
from nas.tasks.deployed import asks_states, hidden_outputs
from nas.tasks.heads import chosen_quality
from nas.tasks.models import load_language_model, load_tokenizer
from nas.tasks.next_token import ASKED, NEXT_TOKEN, score_next_tokens
from nas.tasks.samples import ordinary_tokens
from nas.tasks.task import Batch, Outputs, checked_outputs
from search_spaces.cost import Workload
from search_spaces.families import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class CausalLM:
    """A causal language model, judged by what it expects of running text.

    Metrics on a split: ``perplexity`` and its logarithm ``log_perplexity`` (mean negative log-likelihood of a token, in
    nats, over all predicted tokens of the blocks), ``accuracy`` of the likeliest token, ``agreement`` with the
    teacher's likeliest token, and ``kl`` a token; of perplexities and divergences less is better.

    Args:
        model: Folder or hub name of the model.
        data: The text. Its numbers of samples are numbers of blocks; blocks that occur twice are kept once.
        block_size: Tokens of a block.
        separator: What stands between two texts (rows, lines) of the source.
        top_k: How many of the teacher's likeliest tokens its distribution is kept of, for ``kl`` and distillation.
        quality: The metric that a search improves.
        cache_dir: Where tokens and teacher outputs are kept between runs.

    Raises:
        ValueError: The metric is unknown, a number is too small, or the data name columns that text does not have.
    """

    model: str
    data: TextData
    block_size: int = 256
    separator: str = "\n"
    top_k: int = 64
    quality: str = "log_perplexity"
    cache_dir: str | None = None

    kind: ClassVar[str] = "causal_lm"
    deployed: ClassVar[Mapping[str, str]] = {"logits": NEXT_TOKEN}
    measures: ClassVar[tuple[Measure, ...]] = LANGUAGE

    def __post_init__(self) -> None:
        chosen_quality(self.quality, self.measures, lower_is_better=True)
        for name, least in (("block_size", 2), ("top_k", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` must be a whole number >= {least}, but got {value!r}.")
        for name in ("label_column", "pair_column", "group_columns"):
            if getattr(self.data, name):
                raise ValueError(f"`{name}` must be empty for running text, but got {getattr(self.data, name)!r}.")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return load_tokenizer(self.model)

    @cached_property
    def samples(self) -> BlockSamples:
        """The splits, tokenised when first used."""
        return read_blocks(self.data, self.tokenizer, self.block_size, self.separator, self.cache_dir)

    @property
    def output_names(self) -> tuple[str, ...]:
        """``logits``; of a graph, the KV cache follows."""
        return tuple(self.deployed)

    @property
    def output_settings(self) -> str:
        """The kind and how much of a distribution is kept."""
        return f"{self.kind} {self.top_k}"

    def load_model(self) -> PreTrainedModel:
        """The language model, in fp32 and evaluation mode.

        Raises:
            FileNotFoundError, ValueError: There is none, or blocks are longer than what it was made for.
        """
        model = load_language_model(self.model)
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and self.block_size > longest:
            raise ValueError(
                f"`block_size` must be at most the model's {longest} positions, but got {self.block_size}."
            )
        return model

    def batches(self, split: str, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Every block of a split once, as the model's inputs."""
        return self.samples.batches(split, batch_size)

    def outputs(self, model: nn.Module, batch: Batch, names: Collection[str] = ()) -> dict[str, Tensor]:
        """The columns of `NEXT_TOKEN`, and what of the model's inside is named.

        A student is asked about the tokens in ``batch[ASKED]``, where that is given.
        """
        inputs = {name: value for name, value in batch.items() if name != ASKED}
        asked, tokens, runs = batch.get(ASKED), batch["input_ids"], cast("Any", model)
        if not isinstance(runs, nn.Module):  # A deployed graph, which gives logits.
            found = runs(**inputs)
            return {NEXT_TOKEN: score_next_tokens(found.logits, _same, tokens, asked, self.top_k)}
        options = {"output_hidden_states": asks_states(names), "return_dict": True, "use_cache": False}
        with attention_outputs(runs, names) as attended:
            found = base_model(model)(**inputs, **options)
        head: nn.Module = runs.get_output_embeddings()  # type: ignore[operator]
        scores = score_next_tokens(found.last_hidden_state, head, tokens, asked, self.top_k)
        return {NEXT_TOKEN: scores, **hidden_outputs(found, found.last_hidden_state, names), **attended}

    def metrics(self, split: str, outputs: Outputs, teacher: Outputs) -> dict[str, float]:
        """Perplexity and agreement with the teacher; see the class."""
        return computed(self.measures, self.tables(split, outputs, teacher))

    def tables(self, split: str, outputs: Outputs, teacher: Outputs) -> Tables:
        """Rows of blocks."""
        tokens = self.samples.tokens(split)
        own, other = (checked_outputs(side, NEXT_TOKEN, len(tokens)) for side in (outputs, teacher))
        return {SAMPLES: language_rows(own, other, tokens)}

    def deployable(self, model: nn.Module) -> nn.Module:
        """The model with its KV cache: gives ``logits (samples, tokens, vocabulary)``."""
        return CausalModel(model)

    def example_inputs(self, workload: Workload) -> dict[str, Tensor]:
        """Inputs of a workload's sizes, filled with ordinary tokens; in phase ``decode`` a token after cached ones."""
        ids = ordinary_tokens(self.tokenizer, (workload.batch_size, workload.new_tokens))
        cached = workload.sequence_length if workload.phase == "decode" else 0
        mask = torch.ones(workload.batch_size, cached + workload.new_tokens, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": mask}


def _same(logits: Tensor) -> Tensor:
    return logits
