"""Probabilities of findings: how well they are calibrated, recalibration, thresholds, and risk against coverage.

The share of N samples that state a finding estimates its probability under the policy, in steps of 1/N. Recalibration
is fitted on a validation split, for each condition by itself:

| method | calibrated probability |
|---|---|
| `temperature` | sigmoid(x / T) (Guo et al., 2017) |
| `platt` | sigmoid(a x + b), which also corrects a wrong prevalence (Platt, 1999) |
| `isotonic` | non-decreasing steps of the share (Zadrozny and Elkan, 2002); needs scikit-learn |

x is the logit of the share with half a sample added to both sides, (k + 1/2) / (N + 1), which is finite.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import MissingPackageError, UserError

METHODS = ("platt", "temperature", "isotonic")


def brier(probabilities: Tensor, found: Tensor) -> float:
    """Mean squared difference of probabilities and findings (Brier, 1950); tensors of the same shape."""
    return float((probabilities.double() - found.double()).square().mean())


def reliability(probabilities: Tensor, found: Tensor, num_bins: int = 10) -> list[dict[str, float]]:
    """Bins of equal width of a reliability diagram, without empty ones.

    Args:
        probabilities: Probabilities in [0, 1], of any shape.
        found: Booleans of the same shape.
        num_bins: Number of bins; a bin contains its upper edge, the first also 0.

    Returns:
        For each bin, `probability` (mean), `frequency` (share of findings that are there) and `count`.
    """
    values, present = probabilities.flatten().double(), found.flatten().double()
    index = (values * num_bins - 1e-9).ceil().clamp(1, num_bins).long() - 1
    bins = []
    for place in index.unique().tolist():
        own = index == place
        bins.append({"probability": float(values[own].mean()), "frequency": float(present[own].mean())})
        bins[-1]["count"] = int(own.sum())
    return bins


def calibration_error(probabilities: Tensor, found: Tensor, num_bins: int = 10) -> float:
    """Expected calibration error, ECE (Naeini et al., 2015): mean gap of the bins of `reliability`, by their counts."""
    bins = reliability(probabilities, found, num_bins)
    gaps = sum(own["count"] * abs(own["probability"] - own["frequency"]) for own in bins)
    return gaps / max(1, sum(own["count"] for own in bins))


def best_threshold(probabilities: Tensor, found: Tensor) -> tuple[float, float]:
    """The threshold of the highest F1, and that F1; between two probabilities, the mean of both.

    Args:
        probabilities: (N,).
        found: (N,) bool.
    """
    order = probabilities.argsort(descending=True)
    ranked, hits = probabilities[order].double(), found[order].double().cumsum(0)
    stated = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
    f1 = 2 * hits / (stated + found.sum()).clamp(min=1)
    f1[:-1] = f1[:-1].where(ranked[:-1] > ranked[1:], 0.0)  # no threshold parts equal probabilities
    best = int(f1.argmax())
    if not float(f1[best]):
        return 1.0, 0.0
    below = float(ranked[best + 1]) if best + 1 < len(ranked) else 0.0
    return (float(ranked[best]) + below) / 2, float(f1[best])


def precision_recall(probabilities: Tensor, found: Tensor) -> list[dict[str, float]]:
    """Precision and recall at every threshold that parts the probabilities, the highest threshold first.

    Args:
        probabilities: Probabilities, of any shape.
        found: Booleans of the same shape.

    Returns:
        For each threshold, `threshold`, `precision` and `recall`; a finding is stated at or above the threshold.
    """
    values, present = probabilities.flatten().double(), found.flatten()
    points = []
    for threshold in values.unique().flip(0).tolist():
        stated = values >= threshold
        hits = int((stated & present).sum())
        points.append({"threshold": threshold, "precision": hits / int(stated.sum())})
        points[-1]["recall"] = hits / max(1, int(present.sum()))
    return points


def parse_operating_point(text: str) -> tuple[str, float]:
    """Read an operating point: `("f1", 0)`, `("precision", p)` or `("recall", r)`.

    Raises:
        UserError: If it is none of these, or the number is not in (0, 1].
    """
    name, has_value, value = text.partition("=")
    try:
        number = float(value) if has_value else 0.0
    except ValueError:
        number = -1.0
    if (name == "f1" and not has_value) or (name in ("precision", "recall") and 0 < number <= 1):
        return name, number
    raise UserError(
        f"Expected --operating_point to be f1, precision=P or recall=R with a number in (0, 1], but got {text!r}."
    )


def choose_threshold(probabilities: Tensor, found: Tensor, operating_point: str) -> float:
    """Threshold of one condition on a validation split.

    A wanted recall takes the highest threshold that reaches it. A wanted precision takes the lowest threshold that
    reaches it, and 1.01, which no probability reaches, if there is none.

    Args:
        probabilities: (N,).
        found: (N,) bool.
        operating_point: `f1`, `precision=P` or `recall=R`.
    """
    name, wanted = parse_operating_point(operating_point)
    if not bool(found.any()):
        return 1.01
    if name == "f1":
        return best_threshold(probabilities, found)[0]
    reached = [point["threshold"] for point in precision_recall(probabilities, found) if point[name] >= wanted - 1e-9]
    if not reached:
        return 1.01
    threshold = reached[0] if name == "recall" else reached[-1]
    below = probabilities[probabilities < threshold - 1e-9]
    return (threshold + (float(below.max()) if len(below) else 0.0)) / 2


def risk_coverage(confidence: Tensor, risk: Tensor) -> dict[str, Any]:
    """Mean risk of the most confident reports, for every share of reports that is kept (El-Yaniv and Wiener, 2010).

    Args:
        confidence: (N,) confidence of each report; equal ones share a mean risk.
        risk: (N,) risk of each report, such as 1 - MCCS.

    Returns:
        `coverage` and `risk`, N numbers each; `area` under the curve; `random` and `oracle`, the areas of an order by
        chance and by the risk itself.
    """

    def curve(order: Tensor) -> Tensor:
        return risk.double()[order].cumsum(0) / torch.arange(1, len(risk) + 1, dtype=torch.float64)

    _, group = confidence.unique(return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, risk.double())
    shared = sums / group.bincount()  # reports of equal confidence have no order
    order = confidence.argsort(descending=True, stable=True)
    own = shared[group][order].cumsum(0) / torch.arange(1, len(risk) + 1, dtype=torch.float64)
    return {
        "coverage": [(i + 1) / len(risk) for i in range(len(risk))],
        "risk": own.tolist(),
        "area": float(own.mean()),
        "random": float(risk.double().mean()),
        "oracle": float(curve(risk.argsort()).mean()),
    }


@dataclasses.dataclass
class Calibration:
    """Recalibration of the shares of samples, one for each condition.

    Args:
        method: One of `METHODS`.
        num_samples: Number of samples per study.
        parameters: For each condition, `[a, b]` of sigmoid(a x + b), or `[shares, probabilities]` of the steps.
    """

    method: str
    num_samples: int
    parameters: list[Any]

    @classmethod
    def fit(cls, shares: Tensor, found: Tensor, num_samples: int, method: str = "platt") -> Calibration:
        """Fit on a validation split.

        Args:
            shares: (M, C) shares of samples.
            found: (M, C) bool, findings of the references.
            num_samples: Number of samples per study.
            method: One of `METHODS`.

        Raises:
            UserError: If the method is unknown.
            MissingPackageError: If scikit-learn is needed and not installed.
        """
        if method not in METHODS:
            raise UserError(f"Expected --calibration to be {', '.join(METHODS)} or none, but got {method!r}.")
        columns = list(zip(shares.double().T, found.double().T, strict=True))
        if method == "isotonic":
            return cls(method, num_samples, [_isotonic(*column) for column in columns])
        with_bias = method == "platt"
        logits = [_logit(share, num_samples) for share, _ in columns]
        fitted = [_logistic(x, y, with_bias) for x, (_, y) in zip(logits, columns, strict=True)]
        return cls(method, num_samples, fitted)

    def __call__(self, shares: Tensor) -> Tensor:
        """Calibrated probabilities (M, C), float64, of shares (M, C)."""
        columns = shares.double().T
        if self.method == "isotonic":
            steps = [np.interp(x.numpy(), *known) for x, known in zip(columns, self.parameters, strict=True)]
            return torch.from_numpy(np.stack(steps, 1))
        rows = zip(columns, self.parameters, strict=True)
        return torch.stack([(a * _logit(x, self.num_samples) + b).sigmoid() for x, (a, b) in rows], 1)


def cross_fitted(shares: Tensor, found: Tensor, num_samples: int, method: str, num_folds: int = 5) -> Tensor:
    """Probabilities (M, C) of each study by a calibration that was fitted without it.

    Args:
        shares: (M, C), see `Calibration.fit`.
        found: (M, C) bool.
        num_samples: Number of samples per study.
        method: One of `METHODS`.
        num_folds: Number of parts; study i is in part i % num_folds.
    """
    fold = torch.arange(len(shares)) % min(num_folds, max(2, len(shares)))
    result = torch.zeros(shares.shape, dtype=torch.float64)
    for part in fold.unique():
        rest = fold != part
        own = Calibration.fit(shares[rest], found[rest], num_samples, method) if rest.any() else None
        result[~rest] = shares[~rest].double() if own is None else own(shares[~rest])
    return result


def _logit(shares: Tensor, num_samples: int) -> Tensor:
    return torch.logit((shares * num_samples + 0.5) / (num_samples + 1))


@torch.inference_mode(False)
@torch.enable_grad()
def _logistic(x: Tensor, y: Tensor, with_bias: bool) -> list[float]:
    """Slope and bias of a logistic regression, with Platt's smoothed targets if there is a bias."""
    x, y = x.clone(), y.clone()  # not of inference mode, in which evaluation runs
    num_found = float(y.sum())
    high, low = (num_found + 1) / (num_found + 2), 1 / (len(y) - num_found + 2)
    target = torch.where(y > 0, high, low) if with_bias else y
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    free = torch.tensor([1.0, float(with_bias)], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        a, b = weights * free
        # Where all shares are equal, any slope fits: the weak pull to 1 decides.
        value: Tensor = F.binary_cross_entropy_with_logits(a * x + b, target) + 1e-3 * (a - 1).square()
        value.backward()
        return value

    optimizer.step(loss)
    fitted: list[float] = (weights.detach() * free).tolist()
    return fitted


def _isotonic(x: Tensor, y: Tensor) -> list[list[float]]:
    try:
        from sklearn.isotonic import IsotonicRegression
    except ModuleNotFoundError:
        raise MissingPackageError(
            "--calibration isotonic needs scikit-learn: pip install 'mrg[calibration]', or choose platt."
        ) from None
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x.numpy(), y.numpy())
    return [fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist()]
