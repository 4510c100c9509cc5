"""The teacher's first blocks run once: subnets that begin with them are judged from what those blocks pass on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from search_spaces.canonical import canonical
from search_spaces.families import blocks_of
from search_spaces.subnet import SKIPPED, Precision, SubnetConfig

if TYPE_CHECKING:
    from nas.evaluation.evaluate import Elastic

LIMIT_BYTES = 256 * 2**20


class TeacherPrefix:
    """What the teacher passes from block to block on one split, kept while the teacher itself is judged.

    A subnet that begins with the teacher's blocks then runs without them: they are skipped, and the first block that
    is left reads what was kept instead of the embeddings. What it computes is the same. One-block replacement, of which
    a sensitivity table is made, so runs half of the blocks in the mean.

    Args:
        supernet: Whose subnets are judged; its teacher's tensors must not change.
        precision: In which the device runs the teacher.
        limit_bytes: How much may be kept. Beyond it, what every other block reads is dropped until the rest fits.
    """

    def __init__(self, supernet: Elastic, precision: Precision = "fp32", limit_bytes: int = LIMIT_BYTES) -> None:
        self._supernet = supernet
        self._precision: Precision = precision
        self._limit = limit_bytes
        self._kept_of: str | None = None
        # Number of a block -> what it reads of each batch, ``(batch, sequence, hidden)``.
        self._read: dict[int, list[Tensor]] = {}

    @contextmanager
    def activated(self, subnet: SubnetConfig, split: str) -> Iterator[None]:
        """Make a subnet the one that runs, on all batches of a split, once and in their order.

        Args:
            subnet: The one that is judged, in the precision in which the device runs it.
            split: Name of the samples.
        """
        space = self._supernet.space
        subnet, teacher = canonical(space.shape, subnet), space.teacher.on_device(self._precision)
        start = self._start(subnet, _common(subnet, teacher)) if self._kept_of == split else 0
        if start:
            self._supernet.activate(replace(subnet, blocks=(SKIPPED,) * start + subnet.blocks[start:]))
            try:
                with _reading(blocks_of(self._supernet.model)[0], iter(self._read[start])):
                    yield
            finally:
                self._supernet.activate(subnet)
            return
        self._supernet.activate(subnet)
        if subnet == teacher and self._kept_of != split:
            with self._keeping(split):
                yield
        else:
            yield

    def _start(self, subnet: SubnetConfig, same: int) -> int:
        """The last block whose input is kept before which all is the teacher's, and behind which some block is left."""
        last = min(same, max(subnet.kept, default=0))
        return max((at for at in self._read if at <= last), default=0)

    @contextmanager
    def _keeping(self, split: str) -> Iterator[None]:
        """Keep what all blocks but the first read; nothing where the run is broken off."""
        blocks = blocks_of(self._supernet.model)
        self._kept_of, self._read = None, {at: [] for at in range(1, len(blocks))}
        try:
            with ExitStack() as stack:
                for at in self._read:
                    handle = blocks[at].register_forward_pre_hook(self._keeper(at), with_kwargs=True)
                    stack.callback(handle.remove)
                yield
        except BaseException:
            self._read = {}
            raise
        self._kept_of, self._read = split, {at: found for at, found in self._read.items() if found}

    def _keeper(self, at: int) -> Any:
        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found: Tensor = args[0] if args else kwargs["hidden_states"]
            # Memory of an accelerator is for models.
            if found.device.type == "cpu" and at in self._read:
                self._read[at].append(found)
                self._thin()

        return keep

    def _thin(self) -> None:
        while sum(each.nbytes for found in self._read.values() for each in found) > self._limit:
            self._read = {at: self._read[at] for at in list(self._read)[1::2]}


def _common(one: SubnetConfig, other: SubnetConfig) -> int:
    """How many blocks two subnets begin with alike; none where their residual streams differ."""
    if one.hidden_size != other.hidden_size:
        return 0
    pairs = enumerate(zip(one.blocks, other.blocks, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(one.blocks))


@contextmanager
def _reading(block: nn.Module, batches: Iterator[Tensor]) -> Iterator[None]:
    """Let a block read these in place of what it is given."""

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given, kept = args[0] if args else kwargs["hidden_states"], next(batches, None)
        if kept is None or given.shape != kept.shape:
            raise RuntimeError("batches must be the ones that the teacher was judged on, in their order.")
        return ((kept, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": kept})

    handle = block.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
