"""How far a student is from its teacher: one loss for every kind of task and every place that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from nas.distillation.relations import relation_difference
from nas.tasks.attention import ATTENTION
from nas.tasks.next_token import NEXT_TOKEN, log_likelihoods, log_probabilities

if TYPE_CHECKING:
    from torch import Tensor

    from nas.tasks.task import Task

_OUTPUTS = {
    "logits": ("logits",),
    "label_logits": ("label_logits",),
    "scores": ("scores",),
    "next_token": ("next_token",),
    "embedding": ("embedding",),
    "similarity": ("embedding",),
    "hidden": ("hidden",),
    "hidden_states": ("hidden_states",),
    "relations": ATTENTION,
}


@dataclass(frozen=True, slots=True)
class Distiller:
    """A weighted sum of losses; terms with weight 0 are not computed.

    Args:
        logits: Weight of the Kullback-Leibler divergence from the teacher's softened class probabilities to the
            student's, times temperature squared (Hinton et al. 2015, arXiv 1503.02531).
        label_logits: The same of labels that hold or not, each with a probability of its own.
        scores: Weight of the squared difference of predicted numbers, as a share of the teacher's variance in a batch.
        next_token: Weight of the Kullback-Leibler divergence of a language model's next token, over the teacher's
            likeliest tokens one by one and all others together, softened like logits; mean over tokens.
        embedding: Weight of 1 - cosine of the two embeddings of a text.
        similarity: Weight of the squared difference of the two sides' cosine similarities between all texts of a batch
            (Park et al. 2019, arXiv 1904.05068, with cosines in place of distances).
        hidden: Weight of the squared difference of last hidden states, as a share of the teacher's variance.
        hidden_states: The same after every block (Jiao et al. 2020, arXiv 1909.10351); a student's block learns from
            the teacher's block of the same index. Where its residual stream is narrower, through a projection that is
            trained with it: see `nas.distillation.projections`.
        relations: Weight of the Kullback-Leibler divergence from the teacher's to the student's self-attention
            relations (MiniLMv2, Wang et al. 2021, arXiv 2012.15828), of queries, keys and values added up, in each
            side's last block that has attention. What follows that attention learns nothing from it.
        relation_heads: Into how many heads queries, keys and values are split for it, however many the models have;
            where this does not divide the widths of both sides, the largest smaller number that does.
        labels: Weight of the loss on true labels: cross-entropy, binary cross-entropy or squared error; of a language
            model, on the tokens that came.
        temperature: Softens the logits of both sides.

    Raises:
        ValueError: A weight is negative, all are 0, the temperature is not positive, or there is no relation head.
    """

    logits: float = 0.0
    label_logits: float = 0.0
    scores: float = 0.0
    next_token: float = 0.0
    embedding: float = 0.0
    similarity: float = 0.0
    hidden: float = 0.0
    hidden_states: float = 0.0
    relations: float = 0.0
    relation_heads: int = 12
    labels: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
                raise ValueError(f"`{field.name}` must be a number >= 0, but got {value!r}.")
        if not any((self.labels, *self._weights().values())):
            names = ", ".join(f"`{name}`" for name in (*_OUTPUTS, "labels"))
            raise ValueError(f"at least one of {names} must be > 0, but all are 0.")
        if self.temperature == 0:
            raise ValueError("`temperature` must be > 0, but got 0.")
        if not isinstance(self.relation_heads, int) or self.relation_heads < 1:
            raise ValueError(f"`relation_heads` must be a whole number >= 1, but got {self.relation_heads!r}.")

    @classmethod
    def default(cls, task: Task) -> Distiller:
        """Weights that measured best for the task's kind; see `conf/distiller/`."""
        given = set(task.deployed.values())
        if "embedding" in given:
            return cls(embedding=1.0, hidden=1.0)
        weights: dict[str, Any] = {n: 1.0 for n in ("logits", "label_logits", "scores", NEXT_TOKEN) if n in given}
        return cls(**weights)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the teacher's outputs that the loss reads."""
        return frozenset(output for name, weight in self._weights().items() if weight for output in _OUTPUTS[name])

    def check(self, task: Task, narrower: Sequence[int] = ()) -> None:
        """See that the task and its students give what the loss reads.

        Args:
            task: The task.
            narrower: Hidden sizes below the teacher's of subnets that are trained together, inside a supernet. What
                such a student gives in the end has its teacher's size again, but its blocks' states have not, and
                only a student that is distilled by itself has projections for them.

        Raises:
            ValueError: It does not.
        """
        given = {"hidden", "hidden_states", *ATTENTION, *task.deployed.values()}
        for name, weight in self._weights().items():
            if weight and not given.issuperset(_OUTPUTS[name]):
                raise ValueError(
                    f"distiller: `{name}` needs {_OUTPUTS[name][0]}, which a {task.kind} task does not give (it gives "
                    f"{', '.join(sorted(given))}); choose another, e.g. distiller=logits."
                )
        if self.hidden_states and narrower:
            raise ValueError(
                "distiller: `hidden_states` must be 0 where a supernet is trained, some of whose subnets have another "
                f"hidden size than their teacher ({', '.join(map(str, narrower))}): their blocks' states cannot be "
                "compared; use `hidden`."
            )
        if self.labels and NEXT_TOKEN not in given and task.samples.labels("train") is None:
            raise ValueError("distiller: `labels` must be 0 for a task without labels.")

    def __call__(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        blocks: Sequence[int] | None = None,
    ) -> Tensor:
        """The loss of one batch, a scalar.

        Args:
            student: Outputs by name, as a `Task` gives them.
            teacher: The teacher's outputs of the same batch; read where the weights say so.
            batch: ``attention_mask (samples, tokens)`` of texts, and ``labels``, one row a sample, where they have a
                weight.
            blocks: Index in the teacher of each of the student's blocks; by default they are the same blocks.
        """
        terms: list[Tensor] = []
        mask = batch.get("attention_mask")
        for name, divergence in _DIVERGENCES.items():
            if weight := getattr(self, name):
                terms.append(weight * divergence(student[name], teacher[name], self.temperature))
        if self.scores:
            terms.append(self.scores * score_difference(student["scores"], teacher["scores"]))
        if self.embedding:
            cosines = functional.cosine_similarity(student["embedding"], teacher["embedding"], dim=-1)
            terms.append(self.embedding * (1 - cosines).mean())
        if self.similarity:
            terms.append(self.similarity * similarity_difference(student["embedding"], teacher["embedding"]))
        if self.hidden:
            terms.append(self.hidden * state_difference(student["hidden"], teacher["hidden"], mask))
        if self.hidden_states:
            other = of_blocks(teacher["hidden_states"], blocks)
            terms.append(self.hidden_states * state_difference(student["hidden_states"], other, mask))
        if self.relations:
            terms.append(self.relations * relation_difference(student, teacher, mask, self.relation_heads))
        if self.labels:
            terms.append(self.labels * label_loss(student, batch.get("labels")))
        return torch.stack(terms).sum()

    def _weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _OUTPUTS}


def of_blocks(states: Tensor, blocks: Sequence[int] | None) -> Tensor:
    """The teacher's states ``(blocks, ...)`` that a student which has these of its blocks is compared with."""
    return states if blocks is None else states[list(blocks)]


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of logits ``(samples, classes)`` over a temperature, times its square, mean of samples."""
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        log_target=True,
        reduction="batchmean",
    )
    return divergence * temperature**2


def label_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of independent labels' logits ``(samples, labels)``, summed, times temperature squared."""
    own, other = (torch.stack((side, torch.zeros_like(side)), dim=-1) for side in (student, teacher))
    return softened_divergence(own, other, temperature)


def score_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of numbers ``(samples, 1)``, over the teacher's variance in the batch."""
    spread = teacher.var(correction=0) if len(teacher) > 2 else teacher.new_ones(())
    return functional.mse_loss(student, teacher) / spread.clamp(min=1e-6)


def next_token_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the next token, mean over tokens, nats; see `nas.tasks.next_token` for the columns.

    A temperature softens the distribution over the tokens asked for and all others together, as one more outcome.
    """
    own, other = (_with_rest(side).flatten(0, -2) for side in (student, teacher))
    return softened_divergence(own, other, temperature)


def _with_rest(scores: Tensor) -> Tensor:
    named = log_probabilities(scores)
    # The probability that is left, kept away from 0, where its logarithm has no gradient.
    left = torch.log(-torch.expm1(named.logsumexp(dim=-1, keepdim=True).clamp(max=-1e-6)))
    return torch.cat([named, left], dim=-1)


def label_loss(student: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
    """The loss on true labels that fits what the logits mean; tokens with the label -100 do not count."""
    if NEXT_TOKEN in student:
        return -log_likelihoods(student[NEXT_TOKEN]).mean()
    assert labels is not None
    if "label_logits" in student:
        return functional.binary_cross_entropy_with_logits(student["label_logits"], labels)
    if "scores" in student:
        return functional.mse_loss(student["scores"], labels)
    return functional.cross_entropy(student["logits"].flatten(0, -2), labels.flatten())


def similarity_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities of embeddings ``(samples, hidden)``, over their variance.

    A batch of one text has no pair, and gives 0.
    """
    count = len(student)
    if count < 2:
        return student.sum() * 0.0
    pairs = ~torch.eye(count, dtype=torch.bool, device=student.device)
    own, other = (functional.normalize(side, dim=-1) for side in (student, teacher))
    own, other = (own @ own.T)[pairs], (other @ other.T)[pairs]
    # Two texts have one similarity, which does not vary: then the plain difference counts.
    spread = other.var(correction=0) if count > 2 else other.new_ones(())
    return functional.mse_loss(own, other) / spread.clamp(min=1e-6)


def state_difference(student: Tensor, teacher: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Mean squared difference of states ``(..., samples, tokens, hidden)`` at real tokens, over the teacher's variance.

    Without a mask all tokens are real.
    The variance is that of the teacher's states around their mean over the batch's tokens, block by block, so that 1 is
    the loss of a student that always says the mean.

    Raises:
        ValueError: The hidden sizes or the numbers of blocks differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"hidden states must have the same sizes, but are {tuple(student.shape)} and {tuple(teacher.shape)}. "
            "Distil on embeddings or logits where the hidden size differs."
        )
    mask = attention_mask
    real = student.new_ones(student.shape[-3:-1], dtype=torch.bool) if mask is None else mask.bool()
    own, other = student[..., real, :], teacher[..., real, :]
    spread = other.var(dim=-2, correction=0).mean(dim=-1)
    difference = (own - other).square().mean(dim=(-2, -1))
    return (difference / spread.clamp(min=1e-6)).mean()


# Divergences of distributions that a temperature softens, by the output that they compare.
_DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "logits": softened_divergence,
    "label_logits": label_divergence,
    NEXT_TOKEN: next_token_divergence,
}
