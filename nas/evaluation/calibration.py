"""Whether probabilities mean what they say: calibration error, Brier score, reliability, temperature scaling."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.evaluation.metrics import POSITIVE, SHARE, Floats, Measure, Rows

if TYPE_CHECKING:
    from torch import nn

    from nas.tasks.task import Task

BINS = 15
# Beyond a factor of 20 either way a model has learnt nothing that a temperature could mend.
_LARGEST = math.log(20.0)


def expected_calibration_error(rows: Rows, bins: int = BINS) -> float:
    """Mean distance of confidence and accuracy over equally wide bins, weighted by their samples.

    Of single labels, confidence is the chosen class's probability (Guo et al. 2017, arXiv 1706.04599); of several
    labels, each label of each sample counts as one with the probability that it holds.
    """
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    confidence, right = _confidence(rows)
    return float(binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right), n_bins=bins))


def brier_score(rows: Rows) -> float:
    """Mean squared distance of probabilities and truth, as scikit-learn: halved where there are only two classes."""
    from sklearn.metrics import brier_score_loss

    labels, probabilities = rows["labels"], rows["probabilities"]
    if labels.ndim == 2:
        return float(brier_score_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1], pos_label=1))
    return float(brier_score_loss(labels, _normalised(probabilities), labels=np.arange(probabilities.shape[1])))


def negative_log_likelihood(rows: Rows) -> float:
    """Mean negative logarithm of the true class's probability, nats; summed over several labels."""
    from sklearn.metrics import log_loss

    labels, probabilities = rows["labels"], rows["probabilities"]
    if labels.ndim == 2:
        return float(log_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1])) * int(labels.shape[1])
    return float(log_loss(labels, _normalised(probabilities), labels=np.arange(probabilities.shape[1])))


CALIBRATION = tuple(
    Measure(name, compute, higher_is_better=False, needs=("labels", "probabilities"), span=span)
    for name, compute, span in (
        ("ece", expected_calibration_error, SHARE),
        ("brier", brier_score, POSITIVE),
        ("nll", negative_log_likelihood, POSITIVE),
    )
)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Samples of like confidence: their mean confidence, the share of them that is right, and how many they are."""

    confidence: float
    accuracy: float
    samples: int


def reliability(rows: Rows, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """The points of a reliability diagram; bins without samples are left out."""
    from sklearn.calibration import calibration_curve

    confidence, right = _confidence(rows)
    accuracy, mean = calibration_curve(right, confidence, n_bins=bins)
    # The bins of `calibration_curve`: a value on an edge belongs to the bin below.
    places = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence)
    counts = np.bincount(places, minlength=bins)
    points = zip(mean, accuracy, counts[counts > 0], strict=True)
    return tuple(ReliabilityBin(float(a), float(b), int(n)) for a, b, n in points)


def fit_temperature(logits: Floats, labels: NDArray[np.int64] | NDArray[np.float32]) -> float:
    """The temperature that makes probabilities of these samples likeliest (Guo et al. 2017, arXiv 1706.04599).

    Args:
        logits: ``(samples, classes)``.
        labels: Classes ``(samples,)``; or, of several labels, 1 where one holds, ``(samples, labels)``.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import expit, softmax

    scores = np.asarray(logits, dtype=np.float64)
    squash: Any = expit if labels.ndim == 2 else (lambda values: softmax(values, axis=1))

    def loss(log_temperature: float) -> float:
        # Certainty in one wrong sample must not outweigh all others by an infinity.
        probabilities = np.clip(squash(scores / math.exp(log_temperature)), 1e-12, 1 - 1e-12)
        return negative_log_likelihood({"labels": labels.astype(np.int64), "probabilities": probabilities})

    return math.exp(float(minimize_scalar(loss, bounds=(-_LARGEST, _LARGEST), method="bounded").x))


def with_temperature(model: nn.Module, temperature: float) -> nn.Module:
    """A copy of a classifier whose logits are divided by a temperature: its last projection is, so its graph stays.

    Raises:
        ValueError: The temperature is not positive, or the model has no last projection onto its labels.
    """
    import torch
    from torch.nn import Linear

    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, but got {temperature!r}.")
    scaled = copy.deepcopy(model)
    labels = getattr(getattr(scaled, "config", None), "num_labels", None)
    heads = [module for module in scaled.modules() if isinstance(module, Linear) and module.out_features == labels]
    if not heads:
        raise ValueError(f"a classifier's last projection must give its {labels} labels, but none does.")
    with torch.no_grad():
        for parameter in heads[-1].parameters():
            parameter.div_(temperature)
    return scaled


def with_fitted_temperature(model: nn.Module, task: Task, split: str = "validation") -> tuple[nn.Module, float]:
    """A copy of a classifier with calibrated logits, and the temperature that they were divided by.

    Args:
        model: A `transformers` classifier.
        task: Its task.
        split: Whose labels the temperature is fitted to; not those on which the model is judged.

    Raises:
        ValueError: The task has no probabilities to calibrate.
    """
    from nas.evaluation.evaluate import predict
    from nas.tasks.task import main_output

    name, labels = main_output(task), task.samples.labels(split)
    if task.kind not in ("text_classification", "image_classification") or name == "scores" or labels is None:
        raise ValueError(f"`temperature` calibrates classifiers, but the task is {task.kind} with {name}.")
    logits = predict(lambda batch: task.outputs(model, batch), task, split)[name]
    temperature = fit_temperature(logits, labels)
    return with_temperature(model, temperature), temperature


def _confidence(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What each decision claims to be right with, and whether it is."""
    labels, probabilities = rows["labels"], rows["probabilities"]
    if labels.ndim == 2:
        return probabilities.ravel(), labels.ravel().astype(np.int64)
    # Rounding may leave a sum of probabilities just above 1.
    return np.minimum(probabilities.max(axis=1), 1.0), (rows["chosen"] == labels).astype(np.int64)


def _normalised(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))
