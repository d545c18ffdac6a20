"""RadCliQ (Yu et al., 2023): errors that a radiologist would count, predicted from four scores. Lower is better.

It is a linear combination of RadGraph F1 (mean of entities and relations), BERTScore F1 (distilroberta-base, layer 5,
rescaled), the cosine of CheXbert's embeddings, and BLEU-2, each normalized:

- v1: the coefficients and the normalizer below, which the authors published as radcliq-v1.pkl in
  github.com/rajpurkarlab/CXR-Report-Metric and the package RadEval as numbers.
- v0: read from composite_metric_model.pkl and normalizer.pkl of that repository, of which nothing but numbers is
  loaded.

The parts follow the authors' repository: BERTScore without idf (RadEval uses it), repeated spaces collapsed before
BERTScore, and BLEU-2 of lower-case words, smoothed as in fast_bleu.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mrg.errors import NotFoundError, UserError, UserTypeError, where_raised
from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.learned.base import LearnedScore, Pair, digest_pair
from mrg.metrics.learned.bertscore import BERTScore
from mrg.metrics.learned.radgraph import LEVELS, RadGraphF1

PARTS = ("RadGraph F1", "BERTScore", "CheXbert cosine", "BLEU-2")
LAYER, BASELINE = 5, 0.8473319  # of distilroberta-base in bert_score's rescale_baseline
MODEL, NORMALIZER = "composite_metric_model.pkl", "normalizer.pkl"
REMEDY = (
    f"{MODEL} and {NORMALIZER} are in the folder CXRMetric of github.com/rajpurkarlab/CXR-Report-Metric (MIT); pass a "
    "folder with both."
)


class Coefficients(NamedTuple):
    """A linear model of normalized parts: `sum(weights * (parts - mean) / scale) + intercept`."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    def score(self, parts: tuple[float, ...]) -> float:
        """Score of one report from its parts."""
        columns = zip(self.weights, parts, self.mean, self.scale, strict=True)
        return sum(weight * (part - mean) / scale for weight, part, mean, scale in columns) + self.intercept


V1 = Coefficients(
    (0.53792312, 0.61757256, 0.76479421, 0.44738335),
    (0.30282584, 0.22430938, 0.25394391, 0.29892717),
    (-3.77083683e-01, -3.70300100e-01, -2.52616218e-01, 4.31504841e-12),
    2.46655256e-10,
)


class RadCliQ(LearnedScore):
    """A combination of four scores, lower is better; with `reward` a scorer for rewards.

    Args:
        bertscore: Folder of distilroberta-base, or a `BERTScore` of it; its layer 5 is used.
        radgraph: A `RadGraphF1`, whatever its level, or an archive or folder whose config.json names a local encoder.
            The coefficients were fitted with RadGraph 1.0.
        chexbert: A `CheXbertLabeler`.
        version: `"v1"`, or `"v0"` with `coefficients`.
        coefficients: Folder with composite_metric_model.pkl and normalizer.pkl, for v0.
        reward: Return `(worst - score) / (worst - best)`, not below 0, where worst and best are the scores of a report
            whose parts are all 0 and all 1: higher is better, 1 for the reference itself.
        device: Device of the networks that are made from paths, see `SharesWeights`.
        batch_tokens: Maximum number of tokens in one forward pass of these networks.
        cache_size: Number of pairs whose parts are cached.

    Raises:
        NotFoundError: If weights or coefficients are missing; the message says where they come from.
        UserError: If they cannot be read, or the version is unknown.
        UserTypeError: If `chexbert` is another labeler.
    """

    def __init__(
        self,
        bertscore: BERTScore | str | Path,
        radgraph: RadGraphF1 | str | Path,
        chexbert: CheXbertLabeler,
        version: str = "v1",
        coefficients: str | Path | None = None,
        reward: bool = False,
        device: str | torch.device | None = None,
        batch_tokens: int = 4096,
        cache_size: int = 65_536,
    ) -> None:
        super().__init__(device, batch_tokens, cache_size)
        if version not in ("v0", "v1") or (version == "v0") != (coefficients is not None):
            raise UserError(
                f"Expected argument `version` to be 'v1', or 'v0' with `coefficients`, but got {version!r}. {REMEDY}"
            )
        chexbert = getattr(chexbert, "labeler", chexbert)  # of a labeler that logs its progress
        if not isinstance(chexbert, CheXbertLabeler):
            raise UserTypeError(
                f"Expected argument `chexbert` to be a CheXbertLabeler, but got {type(chexbert).__name__}."
            )
        self._linear = V1 if coefficients is None else read_coefficients(coefficients)
        if not isinstance(bertscore, BERTScore):
            bertscore = BERTScore(bertscore, LAYER, device=device, batch_tokens=batch_tokens)
        elif (bertscore.layer, bertscore.part, bertscore.idf, bertscore.baseline) != (LAYER, "f1", None, None):
            bertscore = BERTScore(bertscore.encoder, LAYER, device=bertscore.device)
        if not isinstance(radgraph, RadGraphF1):
            radgraph = RadGraphF1(radgraph, device=device, batch_tokens=batch_tokens)
        self._parts = (radgraph, bertscore, chexbert)
        self.version, self.coefficients, self.reward = version, coefficients, reward
        self.higher_is_better = reward
        self.name = f"RadCliQ-{version}{' reward' if reward else ''}"

    def parts(self, preds: list[str], target: list[str]) -> torch.Tensor:
        """The four scores in the order of `PARTS`, not normalized: (N, 4) float64."""
        return torch.tensor(self._compute(list(zip(preds, target, strict=True))), dtype=torch.float64).reshape(-1, 4)

    def to(self, device: str | torch.device) -> RadCliQ:
        """Move the three networks to another device."""
        super().to(device)
        for part in self._parts:
            part.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """Arguments that determine the scores, as JSON values."""
        radgraph, bertscore, chexbert = self._parts
        paths = (bertscore.encoder, radgraph.checkpoint, radgraph.encoder, chexbert.checkpoint, self.coefficients)
        names = ("bertscore", "radgraph", "radgraph_encoder", "chexbert", "coefficients")
        own = {name: None if path is None else str(path) for name, path in zip(names, paths, strict=True)}
        return {"name": self.name, "version": self.version, **own}

    def _scores(self, pairs: list[Pair]) -> list[float]:
        compute = self._linear.score
        values = self._remember(pairs, digest_pair, lambda new: dict(zip(new, self._compute(new), strict=True)))
        scores = [compute(values[pair]) for pair in pairs]
        if not self.reward:
            return scores
        worst, best = compute((0.0,) * 4), compute((1.0,) * 4)
        return [max((worst - score) / (worst - best), 0.0) for score in scores]

    def _compute(self, pairs: list[Pair]) -> list[tuple[float, ...]]:
        radgraph, bertscore, chexbert = self._parts
        if not pairs:
            return []
        sides = [list(side) for side in zip(*pairs, strict=True)]
        graphs = [radgraph.graphs(side) for side in sides]
        combined = [LEVELS["combined"](pred, target) for pred, target in zip(*graphs, strict=True)]
        f1 = bertscore(*([re.sub(" +", " ", text) for text in side] for side in sides))
        rescaled = (f1 - BASELINE) / (1 - BASELINE)
        vectors = chexbert.embeddings([text for side in sides for text in side]).double().split(len(pairs))
        cosines = torch.cosine_similarity(vectors[0], vectors[1], dim=1)
        bleu = [bleu_2(pred, target) for pred, target in pairs]
        return list(zip(combined, rescaled.tolist(), cosines.tolist(), bleu, strict=True))


def bleu_2(pred: str, target: str) -> float:
    """BLEU-2 of one report as fast_bleu computes it: a precision of 0 over k bigrams counts as 0.1 / k."""
    words, wanted = (text.lower().replace(".", " .").split(" ") for text in (pred, target))
    words, wanted = ([word for word in side if word] for side in (words, wanted))
    precisions = []
    for n in (1, 2):
        own, other = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (words, wanted))
        shared, total = sum((own & other).values()), max(sum(own.values()), 1)
        if n == 1 and not shared:
            return 0.0
        precisions.append((shared or 0.1) / total)
    penalty = math.exp(min(0.0, 1 - len(wanted) / len(words)))
    return penalty * math.sqrt(precisions[0] * precisions[1])


def read_coefficients(folder: str | Path) -> Coefficients:
    """Read v0's coefficients, a pickled LinearRegression and MinMaxScaler of scikit-learn, without running their code.

    Raises:
        NotFoundError: If a file is missing.
        UserError: If a file contains anything else.
    """
    path = Path(folder).expanduser().absolute()
    for name in (MODEL, NORMALIZER):
        if not (path / name).is_file():
            raise NotFoundError(f"{name} is not in {path}: {REMEDY}")
    try:
        model, scaler = (_Numbers(io.BytesIO((path / name).read_bytes())).load() for name in (MODEL, NORMALIZER))
        weights = [float(value) for value in model.coef_.ravel()]
        scale = [float(value) for value in scaler.scale_]
        mean = [-float(low) / factor for low, factor in zip(scaler.min_, scale, strict=True)]  # x * scale + min
        if len(weights) != len(scale) or len(weights) != len(PARTS):
            raise UserError(f"Expected coefficients of {len(PARTS)} scores, but got {len(weights)} and {len(scale)}.")
        intercept = float(model.intercept_)
    except Exception as error:  # a damaged pickle can raise any class
        raise UserError(
            f"RadCliQ's coefficients in {path} could not be read: {where_raised(error)}. {REMEDY}"
        ) from error
    return Coefficients(tuple(mean), tuple(1 / factor for factor in scale), tuple(weights), intercept)


class _Holder:
    """In place of a class of scikit-learn: holds the attributes, has no code."""


class _Numbers(pickle.Unpickler):
    """Unpickler of arrays and of the two classes."""

    def find_class(self, module: str, name: str) -> Any:
        """The class of an array or its parts; for scikit-learn's classes one without code."""
        if module.startswith("sklearn.") and name in ("LinearRegression", "MinMaxScaler"):
            return _Holder
        arrays = ("ndarray", "dtype", "_reconstruct", "scalar")
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in arrays:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which could run code")
