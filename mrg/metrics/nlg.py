"""BLEU-1 to 4, METEOR, ROUGE-L and CIDEr as computed by pycocoevalcap: similarity of wording, not of findings.

They are not clinical evidence: a sentence with the opposite meaning shares most of its words, and a fixed template
scores well (see docs/scorers.md). They are here for comparison with published tables.

A function and not a `torchmetrics.Metric`: corpus BLEU and METEOR are ratios of sums, and CIDEr weights words by their
frequency in the references of the whole corpus. A metric would have to store all texts, and strings cannot be gathered
over processes as tensor states. Collect the texts of a test run, then call `nlg_scores` once.

Choices:

- Tokens are separated by white space, after a named normalization. "none" and "r2gen-…" are what most
  report-generation code passes to pycocoevalcap; "ptb" is the evaluation of COCO captions. They differ by several
  points: report the name with the scores.
- "r2gen-…" is the cleaning of R2Gen's tokenizer (Chen et al., 2020). Not reproduced: R2Gen also replaces words of the
  references that occur fewer than 3 times (10 on MIMIC-CXR) in training by `<unk>`, so that its references lack rare
  words. Its truncation of long references is `max_tokens`.
- White space is collapsed and `|||` removed from METEOR's input, as both would break the protocol of its Java process.
- An empty prediction scores 0 in every metric.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrg.errors import MissingPackageError, RunError, UserError, install
from mrg.metrics.labels import check_pairs

NORMALIZATIONS = ("none", "ptb", "r2gen-iu", "r2gen-mimic")

# Replacements that R2Gen makes before it splits sentences, and how many times.
_R2GEN_RUNS: dict[str, tuple[tuple[str, str, int], ...]] = {
    "r2gen-iu": (("..", ".", 3),),
    "r2gen-mimic": (("\n", " ", 1), ("__", "_", 7), ("  ", " ", 6), ("..", ".", 8)),
}
# The hyphen is not removed: in R2Gen's expression it stands between two characters and denotes a range.
_R2GEN_REMOVED = re.compile(r"""[.,?;*!%^&_+():<=>@A-Z\[\]{}"'/\\]""")


class NLGScores(NamedTuple):
    """Scores of a corpus and of each of its reports, as fractions.

    Args:
        corpus: "BLEU-1" to "BLEU-4", "METEOR" unless it is left out, "ROUGE-L", "CIDEr" (0 to 10).
        per_report: The same names, each (N,) float64. ROUGE-L and CIDEr of the corpus are the means of these values,
            which intervals and paired comparisons can resample. BLEU and METEOR of the corpus are ratios of sums over
            all reports: their intervals need the corpus score of resampled reports.
    """

    corpus: dict[str, float]
    per_report: dict[str, Tensor]


def nlg_scores(
    preds: Sequence[str],
    target: Sequence[str],
    normalization: str = "none",
    meteor: bool = True,
    max_tokens: int | None = None,
) -> NLGScores:
    """Score reports against one reference each.

    Args:
        preds: N reports.
        target: N reference reports.
        normalization: `"none"`, `"ptb"`, `"r2gen-iu"` or `"r2gen-mimic"`, see the module.
        meteor: Whether to compute METEOR, which needs Java and takes several seconds to start.
        max_tokens: Number of tokens after which texts are truncated; None keeps all. R2Gen's references have at most 59
            tokens on IU X-Ray and 99 on MIMIC-CXR, its predictions one more.

    Returns:
        Scores of the corpus and of each report. CIDEr is 0 if all references are equal or there is only one, as no word
        then distinguishes them.

    Raises:
        UserError: If the lengths differ, there is no report, or a setting is unknown.
        UserTypeError: If something is not a string; the message gives its index.
        MissingPackageError: If pycocoevalcap is not installed.
        RunError: If Java is missing or fails.

    Source:
        Papineni et al., 2002; Lavie and Agarwal, 2007; Lin, 2004; Vedantam et al., 2015; the code of Chen et al., 2015.

    Example:
        >>> scores = nlg_scores(["no effusion"], ["no pleural effusion"], meteor=False)
        >>> round(scores.corpus["ROUGE-L"], 4)
        0.7722
    """
    check_pairs(preds, target)
    if not preds:
        raise UserError("Expected at least one report, but got none.")
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"Expected argument `max_tokens` to be at least 1, but got {max_tokens}.")
    texts = normalize_reports([*preds, *target], normalization)
    if max_tokens is not None:
        texts = [" ".join(text.split(" ")[:max_tokens]) for text in texts]
    p, t = texts[: len(preds)], texts[len(preds) :]

    per_report: dict[str, Any] = {}
    corpus: dict[str, float] = {}
    # ROUGE-L of pycocoevalcap splits at each blank, so that two blanks in a row enclose an empty word.
    as_is = normalization == "none" and max_tokens is None
    _bleu_rouge_cider(p, t, corpus, per_report, (list(preds), list(target)) if as_is else (p, t))
    if meteor:
        corpus["METEOR"], per_report["METEOR"] = _meteor(p, t)
    order = [*(f"BLEU-{n}" for n in range(1, 5)), *(["METEOR"] if meteor else []), "ROUGE-L", "CIDEr"]
    return NLGScores(
        {name: float(corpus[name]) for name in order},
        {name: torch.as_tensor(per_report[name], dtype=torch.float64) for name in order},
    )


def need_nlg(normalization: str = "none") -> None:
    """Check that what `nlg_scores` needs is installed, before anything is computed.

    Raises:
        MissingPackageError: If pycocoevalcap is not installed.
        RunError: If Java is missing.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise _missing_extra()
    _need_java("METEOR" if normalization != "ptb" else "METEOR and the normalization 'ptb'", "or leave out nlg")


def bleu(preds: Sequence[str], target: Sequence[str]) -> Tensor:
    """BLEU-4 of each report (N,), a scorer for rewards; without normalization and without Java."""
    return nlg_scores(preds, target, meteor=False).per_report["BLEU-4"]


def rouge_l(preds: Sequence[str], target: Sequence[str]) -> Tensor:
    """ROUGE-L of each report (N,), a scorer for rewards; without normalization and without Java."""
    return nlg_scores(preds, target, meteor=False).per_report["ROUGE-L"]


def normalize_reports(texts: Sequence[str], normalization: str) -> list[str]:
    """Normalize reports to one line each, with tokens separated by one space; an empty report remains empty.

    Raises:
        UserError: If the normalization is unknown.
        MissingPackageError: If `"ptb"` is chosen and pycocoevalcap is not installed.
        RunError: If `"ptb"` is chosen and Java is missing or fails.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"Expected argument `normalization` to be one of {', '.join(map(repr, NORMALIZATIONS))}, "
            f"but got {normalization!r}."
        )
    if normalization in _R2GEN_RUNS:
        texts = [_r2gen(text, _R2GEN_RUNS[normalization]) if text.strip() else "" for text in texts]
    # A lone surrogate cannot be sent to a Java process and becomes a question mark.
    texts = [" ".join(text.encode("utf-8", "replace").decode("utf-8").split()) for text in texts]
    return _ptb(texts) if normalization == "ptb" else texts


def _r2gen(text: str, runs: tuple[tuple[str, str, int], ...]) -> str:
    for old, new, times in runs:
        for _ in range(times):
            text = text.replace(old, new)
    # List numbers, anywhere in the text; "21. " loses its second digit, as in R2Gen.
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = text.strip().lower().split(". ")
    return " . ".join(_R2GEN_REMOVED.sub("", sentence.strip()) for sentence in sentences) + " ."


def _bleu_rouge_cider(
    preds: list[str],
    target: list[str],
    corpus: dict[str, float],
    per_report: dict[str, Any],
    given: tuple[list[str], list[str]],
) -> None:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise _missing_extra() from error
    gts, res = _captions(target), _captions(preds)
    values, reports = Bleu(4).compute_score(gts, res, verbose=0)
    for n in range(4):
        corpus[f"BLEU-{n + 1}"], per_report[f"BLEU-{n + 1}"] = values[n], reports[n]
    rouge = torch.as_tensor(Rouge().compute_score(_captions(given[1]), _captions(given[0]))[1], dtype=torch.float64)
    # Splitting "" at spaces gives one empty word, which would match that of an empty reference.
    per_report["ROUGE-L"] = rouge * torch.tensor([bool(text) for text in preds])
    corpus["ROUGE-L"] = float(per_report["ROUGE-L"].mean())
    if any(target):
        corpus["CIDEr"], per_report["CIDEr"] = Cider().compute_score(gts, res)
    else:  # pycocoevalcap takes the maximum over the words of all references, which are none here
        corpus["CIDEr"], per_report["CIDEr"] = 0.0, [0.0] * len(preds)


def _meteor(preds: list[str], target: list[str]) -> tuple[float, list[float]]:
    _need_java("METEOR", "or leave it out: `meteor=False`")
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError as error:
        raise _missing_extra() from error
    gts, res = (_captions([" ".join(text.replace("|||", " ").split()) for text in side]) for side in (target, preds))
    meteor = Meteor()
    try:
        corpus, reports = meteor.compute_score(gts, res)
    except (OSError, ValueError) as error:  # a closed pipe, or an answer that is no number
        meteor.meteor_p.kill()
        reason = meteor.meteor_p.stderr.read().decode(errors="replace").strip()
        raise RunError(f"METEOR's Java process failed: {reason or error}") from error
    finally:
        _close(meteor)
    return corpus, reports


def _close(meteor: Any) -> None:
    """End the Java process at once and not when the object is garbage-collected."""
    if meteor.lock.locked():  # held after an error, and the object's own clean-up would wait for it forever
        meteor.lock.release()
    with contextlib.suppress(OSError):  # data not sent yet cannot be sent any more
        meteor.meteor_p.stdin.close()
    meteor.meteor_p.kill()
    meteor.meteor_p.wait()
    meteor.meteor_p.stdout.close()
    meteor.meteor_p.stderr.close()


def _ptb(texts: list[str]) -> list[str]:
    """Penn Treebank tokens of pycocoevalcap, without punctuation.

    Its Python class writes a temporary file into its own folder, which may be read-only, prints to standard error and
    miscounts empty texts; so its Java program and its list of punctuation are used directly.
    """
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError as error:
        raise _missing_extra() from error
    _need_java("the normalization 'ptb'", "or choose another one")
    written = [text for text in texts if text]
    if not written:
        return list(texts)
    command = ["java", "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR, "edu.stanford.nlp.process.PTBTokenizer"]
    result = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        cwd=Path(ptbtokenizer.__file__).parent,
        input="".join(f"{text}\n" for text in written).encode(),
        capture_output=True,
        check=False,
    )
    if result.returncode:
        raise RunError(f"The Penn Treebank tokenizer failed: {result.stderr.decode(errors='replace').strip()}")
    lines = result.stdout.decode().splitlines()
    if len(lines) != len(written):  # every later report would be shifted
        raise RunError(f"The Penn Treebank tokenizer gave {len(lines)} lines for {len(written)} reports.")
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    tokens = iter(" ".join(word for word in line.split() if word not in dropped) for line in lines)
    return [next(tokens) if text else "" for text in texts]


def _captions(texts: list[str]) -> dict[int, list[str]]:
    return {index: [text] for index, text in enumerate(texts)}


def _need_java(what: str, otherwise: str) -> None:
    if shutil.which("java") is None:
        raise RunError(f"Expected `java` on the PATH for {what}, but found none: install a Java runtime, {otherwise}.")


def _missing_extra() -> MissingPackageError:
    return MissingPackageError(f"NLG scores need the package pycocoevalcap: {install('nlg')}")
