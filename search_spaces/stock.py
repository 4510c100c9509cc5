"""What plain `transformers` needs to load a subnet's folder: its own class where that can express the subnet, or code.

A subnet whose blocks all have the same sizes is often a model that the stock class can build from other numbers in its
configuration. Every other subnet's folder carries a copy of `modeling_subnet`, named by its configuration's `auto_map`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from search_spaces import modeling_subnet
from search_spaces.families import ModelFamily
from search_spaces.shapes import ModelShape
from search_spaces.subnet import SubnetConfig

MODELING_FILE = "modeling_subnet.py"
_CLASS = '''

class {name}(transformers.{name}):
    """The stock class with the sizes of this subnet."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        super().__init__(whole(config, config.subnet), *args, **options)
        shrink(self, config.subnet)
'''


def stock_config(model: Any, family: ModelFamily, shape: ModelShape, subnet: SubnetConfig) -> Any | None:
    """The configuration from which the stock class builds exactly this model; None where it cannot.

    Args:
        model: A plain model of the subnet.
        family: Its family.
        shape: The teacher's sizes.
        subnet: A canonical subnet.
    """
    kinds = {subnet.blocks[index] for index in subnet.kept}
    if len(kinds) != 1 or any(not block.heads or not block.ffn for block in kinds):
        return None
    if subnet.hidden_size != shape.hidden_size:  # No class has a projection behind its last norm.
        return None
    block, config = kinds.pop(), copy.deepcopy(model.config)
    sizes = {family.config_ffn: block.ffn}
    if block.heads != shape.heads:
        sizes |= {"num_attention_heads": block.heads, "head_dim": shape.head_dim}
        sizes |= {"num_key_value_heads": block.kv_heads} if hasattr(config, "num_key_value_heads") else {}
    try:
        for name, value in sizes.items():
            setattr(config, name, value)
        config.validate()
        with torch.device("meta"):
            built = type(model)(config)
    except (ValueError, TypeError, StrictDataclassError):  # A rule of the class: Llama's heads divide the hidden size.
        return None
    return config if _same_structure(built, model) else None


def _same_structure(built: nn.Module, model: nn.Module) -> bool:
    """Whether two models differ in weights alone: same classes, shapes, and numbers that modules remember."""
    # A stock base model always has a pooler; it reads nothing that a subnet changes.
    mine, theirs = (
        {path: module for path, module in m.named_modules() if "pooler" not in path.split(".")} for m in (built, model)
    )
    if mine.keys() != theirs.keys():
        return False
    for path, module in mine.items():
        other = theirs[path]
        shapes = [{n: tuple(t.shape) for n, t in m.named_parameters(recurse=False)} for m in (module, other)]
        remembered = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, int | float | str | None) and name != "training" and not name.startswith("_")
        }
        if type(module) is not type(other) or shapes[0] != shapes[1]:
            return False
        if any(getattr(other, name) != value for name, value in remembered.items()):
            return False
    return True


def write_modeling(directory: Path, config: Any, architecture: str, changes: dict[str, Any]) -> None:
    """Write the code that builds a subnet, and name it in the subnet's configuration.

    Args:
        directory: The subnet's folder.
        config: Its configuration, which gets ``auto_map`` and ``subnet``.
        architecture: The model's stock class.
        changes: What `search_spaces.surgery.subnet_changes` gave.
    """
    names = auto_classes(type(config), architecture)
    config.auto_map = {auto: f"modeling_subnet.{name}" for auto, name in names.items()}
    config.subnet = changes
    source = Path(modeling_subnet.__file__).read_text(encoding="utf-8")
    source = source.replace("import torch\n", "import torch\nimport transformers\n", 1)
    source += "".join(_CLASS.format(name=name) for name in dict.fromkeys(names.values()))
    (directory / MODELING_FILE).write_text(source, encoding="utf-8")


def auto_classes(config_class: type, architecture: str) -> dict[str, str]:
    """``AutoModel...`` class -> the stock class that it loads: for the bare model and for this architecture."""
    found = {}
    for name in sorted(dir(transformers)):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is None or config_class not in mapping:
            continue
        classes = mapping[config_class]
        stock = {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}
        if name == "AutoModel":
            found[name] = sorted(stock)[0]
        elif architecture in stock:
            found[name] = architecture
    return found
