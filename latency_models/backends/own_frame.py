"""What `torch.compile` is given: a file of its own, because tests leave it as it is written (`[tool.slipcover]`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def own_frame(module: nn.Module) -> Callable[..., Any]:
    """A function that calls the module and owns its code object.

    Dynamo caches by code object and gives up after a few entries: hundreds of subnets of one class would share one
    cache, check each other's guards at every call, and from the ninth on silently run eagerly.
    """

    def forward(**inputs: Tensor) -> Any:
        return module(**inputs)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{id(module)}")
    return forward
