"""The scores of `--scores` by name: what each needs, whether it is there, and how it is computed.

Everything that a score needs (an extra, weights, a server) is checked before the first one is computed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mrg
from mrg.errors import MissingPackageError, RunError, UserError, nearest
from mrg.metrics.imports import import_named
from mrg.metrics.labels import Scorer
from mrg.metrics.nlg import need_nlg, nlg_scores, normalize_reports
from mrg.metrics.scorer import is_upward, optional_scores
from mrg.metrics.scores.finding import finding_group
from mrg.metrics.scores.group import Corpus, Group, Row, mean
from mrg.metrics.scores.kept import stamp

LABELED = ("ce", "mccs")
"""Scores of labels, which `mrg.metrics.evaluation` computes."""
LEARNED = ("bertscore", "radgraph", "ratescore", "radcliq")
NAMES = (*LABELED, "finding", "nlg", *LEARNED, "judge")
_NEEDS = {
    "bertscore": "--bertscore ENCODER [LAYER]",
    "radgraph": "--radgraph CHECKPOINT [ENCODER]",
    "ratescore": "--ratescore NER ENCODER [SPLITTER]",
    "radcliq": "--bertscore ENCODER, --radgraph CHECKPOINT [ENCODER] and --chexbert CHECKPOINT",
    "judge": "--judge URL MODEL",
}
_CLASSES = {
    "bertscore": "mrg.metrics.learned.bertscore:BERTScore",
    "radgraph": "mrg.metrics.learned.radgraph:RadGraphF1",
    "ratescore": "mrg.metrics.learned.ratescore:RaTEScore",
    "radcliq": "mrg.metrics.learned.radcliq:RadCliQ",
}


def parse_scores(text: str) -> list[str]:
    """Read the names in `--scores`, in the order of `NAMES`.

    Raises:
        UserError: If there is none, or one is unknown.
    """
    given = [name.strip().lower() for name in text.split(",") if name.strip()]
    if unknown := [name for name in given if name not in NAMES]:
        guesses = "".join(f" {name!r} is not a score{nearest(name, NAMES) or '.'}" for name in unknown)
        raise UserError(f"Expected --scores to name scores out of {', '.join(NAMES)}.{guesses}")
    if not given:
        raise UserError(f"Expected --scores to name at least one score out of {', '.join(NAMES)}.")
    return [name for name in NAMES if name in given]


def make_groups(
    names: Sequence[str], options: argparse.Namespace, labeler: Any, scorers: Mapping[str, Scorer], judged: Path
) -> list[Group]:
    """Build the groups of scores except CE and MCCS, and check that all can be computed.

    Args:
        names: Names of `NAMES`.
        options: Options of the command.
        labeler: Labeler of the command.
        scorers: Further scores, of `--scorer`.
        judged: File of the judge's answers.

    Raises:
        UserError: If something is missing or wrong; the message names every score that cannot be computed.
        MissingPackageError: If that is an extra.
    """
    learned: dict[str, Any] = {}
    makers: dict[str, Callable[[], Group]] = {
        "finding": lambda: finding_group(labeler),
        "nlg": lambda: nlg_group(options.normalization),
        "judge": lambda: judge_group(options, judged),
    }
    makers |= {name: partial(learned_group, name, options, labeler, learned) for name in LEARNED}
    groups: list[Group] = []
    problems: list[tuple[str, Exception]] = []
    for name in names:
        if name in LABELED:
            continue
        try:
            groups.append(makers[name]())
        except (UserError, RunError) as error:
            problems.append((name, error))
    if problems:
        missing = all(isinstance(error, MissingPackageError) for _, error in problems)
        text = " ".join(f"{name} cannot be computed: {error}" for name, error in problems)
        raise (MissingPackageError if missing else UserError)(text) from problems[0][1]
    for spec, scorer in scorers.items():
        up = is_upward(scorer)
        how = "mean over reports" if up else "mean over reports; lower is better"
        row = Row(spec, how, mean(), percent=False, higher_is_better=up)
        groups.append(Group(spec, [row], _filled(scorer, spec), {}))
    return groups


def _filled(scorer: Scorer, name: str) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """Values of a scorer as numbers, nan where it has none."""
    return lambda preds, target: np.array(optional_scores(scorer, preds, target, name), dtype=np.float64)


def learned_group(name: str, options: argparse.Namespace, labeler: Any, made: dict[str, Any]) -> Group:
    """A score of a network; networks that two scores need are loaded once, into `made`."""

    def make(part: str) -> Any:
        if part not in made:
            made[part] = import_named(_CLASSES[part], "score", "class")(*given[part])
        return made[part]

    given = {"bertscore": options.bertscore, "radgraph": options.radgraph, "ratescore": options.ratescore}
    parts = ("bertscore", "radgraph") if name == "radcliq" else (name,)
    if any(given[part] is None for part in parts) or (name == "radcliq" and options.chexbert is None):
        raise UserError(f"it needs {_NEEDS[name]}, see docs/metrics.md for the weights and their licenses.")
    given = {part: _arguments(part, given[part]) for part in parts}
    if name == "radcliq":
        scorer = import_named(_CLASSES[name], "score", "class")(given["bertscore"][0], make("radgraph"), labeler)
    else:
        scorer = make(name)
    paths = [path for part in parts for path in given[part]] + ([options.chexbert] if name == "radcliq" else [])
    own = scorer.settings()
    settings = {"score": name, "mrg": mrg.__version__, **own, "files": [stamp(Path(str(path))) for path in paths]}
    kinds = (str, int, float)
    plain = {key: value for key, value in own.items() if type(value) in kinds and key != "name"}
    shown = [f"{key} {Path(value).name if isinstance(value, str) else value}" for key, value in plain.items()]
    up = bool(scorer.higher_is_better)
    how = "; ".join(["mean over reports", *shown, *([] if up else ["lower is better"])])
    row = Row(scorer.name, how, mean(), name != "radcliq", up)
    return Group(name, [row], _filled(scorer, scorer.name), settings, 100)


def _arguments(name: str, given: Sequence[str]) -> list[Any]:
    """Positional arguments of a score's class from the words after its option."""
    least = 2 if name == "ratescore" else 1
    if not least <= len(given) <= least + 1:
        raise UserError(f"expected {_NEEDS[name]}, but got {' '.join(given)!r}.")
    if name == "bertscore" and len(given) == 2:
        if not given[1].isdecimal():
            raise UserError(f"expected the layer of --bertscore to be a number, but got {given[1]!r}.")
        return [given[0], int(given[1])]
    return [*given[:2], "long", given[2]] if name == "ratescore" and len(given) == 3 else list(given)


def judge_group(options: argparse.Namespace, answers: Path) -> Group:
    """The score of a judge over HTTP, whose answers are kept in its own cache."""
    if options.judge is None:
        raise UserError(f"it needs {_NEEDS['judge']}, the address of an OpenAI-compatible server and its model.")
    try:
        from mrg.metrics.judge import Judge
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"it needs the package {error.name}.") from error
    url, model = options.judge
    judge = Judge(url, model, cache=answers)
    judge.check()
    reasons: dict[tuple[str, str], str] = {}

    def values(preds: Sequence[str], target: Sequence[str]) -> np.ndarray:
        scores = judge(preds, target)
        reasons.update({(preds[i], target[i]): reason for i, reason in judge.failures})
        return np.array(scores, dtype=np.float64)

    row = Row(judge.name, "mean over reports of matched findings / (matched + significant errors)", mean())
    return Group("judge", [row], values, {}, 0, None, reasons, judge.usage)


def nlg_group(normalization: str) -> Group:
    """BLEU, METEOR, ROUGE-L and CIDEr.

    The columns are 10 counts of BLEU (see `bleu_counts`), METEOR, ROUGE-L and CIDEr. METEOR of the table is the mean
    over reports, which has an interval; `nlg_scores` has the ratio of sums over the corpus as well.
    """
    need_nlg(normalization)
    means = ("METEOR", "ROUGE-L", "CIDEr")

    def values(preds: Sequence[str], target: Sequence[str]) -> np.ndarray:
        scores = nlg_scores(preds, target, normalization).per_report
        counts = bleu_counts(*(normalize_reports(side, normalization) for side in (preds, target)))
        return np.concatenate([counts, np.stack([scores[name].numpy() for name in means], 1)], 1)

    end = f"normalization {normalization}"
    rows = [Row(f"BLEU-{n}", f"counts of the corpus, {end}", _bleu(n)) for n in range(1, 5)]
    rows += [
        Row(name, f"mean over reports, {end}", mean(10 + i), percent=name != "CIDEr") for i, name in enumerate(means)
    ]
    version = importlib.metadata.version("pycocoevalcap")
    settings = {"score": "nlg", "mrg": mrg.__version__, "normalization": normalization, "pycocoevalcap": version}
    return Group("nlg", rows, values, settings)


def bleu_counts(preds: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Counts of BLEU-4 (Papineni et al., 2002) with one reference each.

    Returns:
        (N, 10) float64: n-grams of the report that are in the reference, clipped to their number there, for n = 1 to 4;
        n-grams of the report; words of the report and of the reference.
    """
    rows = []
    for pred, reference in zip(preds, target, strict=True):
        words, wanted = pred.split(), reference.split()
        right = [sum((_grams(words, n) & _grams(wanted, n)).values()) for n in range(1, 5)]
        rows.append([*right, *(max(0, len(words) - n) for n in range(4)), len(words), len(wanted)])
    return np.array(rows, dtype=np.float64).reshape(-1, 10)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu(n: int) -> Corpus:
    """BLEU-n of sums of `bleu_counts`, with the two small numbers by which pycocoevalcap avoids 0/0."""

    def corpus(sums: np.ndarray, num: int) -> np.ndarray:
        precisions = (sums[:, :n] + 1e-15) / (sums[:, 4 : 4 + n] + 1e-9)
        ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
        penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        score: np.ndarray = precisions.prod(1) ** (1 / n) * penalty
        return score

    return corpus
