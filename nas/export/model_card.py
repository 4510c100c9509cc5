"""The card of an exported model: what it is, how good and how fast it was measured, and the lines that run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nas.evaluation.model_card import hub_metadata, shown_name
from nas.reports.drawing import describe_block
from nas.reports.tables import describe, escape_markdown, format_number, markdown_table
from search_spaces.subnet import SubnetConfig

CARD_FILE = "model_card.md"
_SEQUENCE = "AutoModelForSequenceClassification"
# The class of transformers that loads a task's models; the bare model where the task's kind is not here.
AUTO_CLASSES = {
    "text_classification": _SEQUENCE,
    "multi_label_classification": _SEQUENCE,
    "text_regression": _SEQUENCE,
    "token_classification": "AutoModelForTokenClassification",
    "image_classification": "AutoModelForImageClassification",
    "causal_lm": "AutoModelForCausalLM",
}
_LIMITS = """\
Where blocks differ in width, `trust_remote_code=True` runs `modeling_subnet.py` of this folder, which makes them so.
Whoever would rather run no code from a folder loads it with hwnas: `search_spaces.checkpoint.load_subnet(Path("."))`.

## Limits

The model imitates its teacher and shares the teacher's limits and licence. Quality was measured on the data named in
`metrics.json` and latency on the device named there; neither says much about others.
"""


@dataclass(frozen=True, slots=True)
class Card:
    """What the card says beside the measurements.

    Args:
        name: What people call the model.
        teacher: What people call its teacher.
        kind: The task's kind.
        subnet: The architecture.
        output: The graph's main output.
        max_length: Tokens kept of a text.
        graphs: File names of the ONNX graphs.
    """

    name: str
    teacher: str
    kind: str
    subnet: SubnetConfig
    output: str
    max_length: int
    graphs: tuple[str, ...]

    def to_json(self) -> str:
        """Text that ``from_json`` reads back."""
        return json.dumps({**asdict(self), "subnet": self.subnet.to_dict()}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: The text is something else.
        """
        try:
            data = json.loads(text)
            subnet, graphs = SubnetConfig.from_dict(data.pop("subnet")), tuple(data.pop("graphs"))
            return cls(subnet=subnet, graphs=graphs, **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"card: the data do not fit ({error}).") from error


def load_snippet(directory: str, graph: str, output: str, max_length: int) -> str:
    """Python lines that run an exported graph with onnxruntime and tokenizers alone.

    Args:
        directory: The folder as it shall stand in the lines.
        graph: File name of the graph.
        output: Name of the wanted output.
        max_length: Tokens kept of a text.
    """
    return f"""\
import numpy, onnxruntime, tokenizers
folder = {directory!r}
tokenizer = tokenizers.Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({max_length}), tokenizer.enable_padding()
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}")
texts = tokenizer.encode_batch(["First sentence.", "A second one, a little longer."])
inputs = {{"input_ids": [t.ids for t in texts], "attention_mask": [t.attention_mask for t in texts],
          "token_type_ids": [t.type_ids for t in texts]}}
feeds = {{i.name: numpy.array(inputs[i.name]) for i in session.get_inputs()}}
{"embeddings" if "embedding" in output else "result"} = session.run([{output!r}], feeds)[0]
"""


def transformers_snippet(directory: str, kind: str) -> str:
    """Python lines that load the folder as a plain `transformers` model, without hwnas.

    Args:
        directory: The folder as it shall stand in the lines.
        kind: The task's kind.
    """
    auto = AUTO_CLASSES.get(kind, "AutoModel")
    return f"""\
from transformers import {auto}
model = {auto}.from_pretrained({directory!r}, trust_remote_code=True)
"""


def render_card(card: Card, metrics: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    of = f" of {escape_markdown(shown_name(card.teacher))}" if card.teacher else ""
    kind = card.kind.replace("_", " ")
    shape = f"{describe(card.subnet)}, hidden size {card.subnet.hidden_size}"
    parts = [
        f"---\n{hub_metadata(card.name, card.kind, card.teacher)}\n---\n",
        f"# {escape_markdown(card.name)}\n",
        f"A smaller version{of} for {kind}, found by hwnas: {shape}.\n",
        "".join(f"- {describe_block(index, block)}\n" for index, block in enumerate(card.subnet.blocks)),
    ]
    for title, name in (("Quality", "quality"), ("Measured", "measured")):
        if table := _table(metrics.get(name)):
            parts += [f"## {title}\n", table]
    parts.append("Everything that was measured, and on what, is in `metrics.json`.\n")
    if card.graphs:
        snippet = load_snippet(".", card.graphs[-1], card.output, card.max_length)
        parts.append(f"## Run it with onnxruntime\n\nInside this folder:\n\n```python\n{snippet}```\n")
    parts.append(f"## Load it with transformers\n\n```python\n{transformers_snippet('.', card.kind)}```\n")
    parts.append(_LIMITS)
    return "\n".join(parts)


def _table(data: Any) -> str:
    """Numbers by model, a row each, as a table; empty where there are none."""
    if not isinstance(data, Mapping):
        return ""
    rows = {name: _numbers(figures) for name, figures in data.items() if isinstance(figures, Mapping)}
    columns = list(dict.fromkeys(column for figures in rows.values() for column in figures))
    if not columns:
        return ""
    body = [[name, *(figures.get(column, "-") for column in columns)] for name, figures in rows.items()]
    return markdown_table(["", *columns], body)


def _numbers(figures: Mapping[str, Any]) -> dict[str, str]:
    """Figures as texts: numbers, and estimates with their intervals."""
    found = {}
    bounded: dict[str, Any] = {name: (figures.get(f"{name}_low"), figures.get(f"{name}_high")) for name in figures}
    ends = {f"{name}{end}" for name, pair in bounded.items() if None not in pair for end in ("_low", "_high")}
    for name, value in figures.items():
        if name in ends:
            continue  # Told behind its value.
        if type(value) in (int, float):
            text = str(value) if type(value) is int else format_number(value)
            low, high = bounded[name]
            known = low is not None and high is not None
            found[name] = f"{text} [{format_number(low)}, {format_number(high)}]" if known else text
        elif isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
            text, low, high = (format_number(float(value[key])) for key in ("value", "low", "high"))
            found[name] = f"{text} [{low}, {high}]"
    return found
