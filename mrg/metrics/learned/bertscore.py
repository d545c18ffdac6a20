"""BERTScore (Zhang et al., 2020): greedy matching of the contextual embeddings of two texts, by any local encoder.

Each token of the report is matched with the most similar token of the reference and the other way round; the weighted
means of these cosines are precision and recall. Equal to the package bert_score 0.3.13 scoring one pair at a time. The
differences:

- The package cannot encode an empty text on transformers 5, and needs tokenizer_config.json; here neither matters.
- In a padded batch of the package a negative cosine becomes 0, so that its score depends on the other pairs; not here.
- Texts are encoded once per call, in batches sorted by length, and scores of pairs are cached.

As in the package, the first and the last special token have weight 0 but can be matched, RoBERTa's tokenizers see a
space before the first word, and a pair in which a text has no token scores 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.labels import check_texts
from mrg.metrics.learned.base import LearnedScore, Pair, digest_pair, encodable
from mrg.metrics.learned.encoder import Encoder, read_encoder
from mrg.metrics.shared import exact_inference

REMEDY = (
    "BERTScore needs an encoder such as distilroberta-base or roberta-large (Apache-2.0 and MIT, from Hugging Face); "
    "download it once, `hf download distilbert/distilroberta-base --local-dir FOLDER`, and pass the folder."
)
PARTS = ("precision", "recall", "f1")
_PAIRS = 256  # whose embeddings are held at a time


class BERTScore(LearnedScore):
    """Similarity of wording in context, a scorer for metrics and rewards.

    Args:
        encoder: Folder of an encoder, with config.json, weights and the files of its tokenizer.
        layer: Layer whose output is compared, from 1; the last one by default. The package uses 5 for
            distilroberta-base, 17 for roberta-large and 9 for bert-base-uncased.
        part: `"f1"`, `"precision"` or `"recall"`.
        idf: Texts, such as all references, from which inverse document frequencies weight the tokens; None weights all
            tokens equally.
        baseline: Score of unrelated texts, which is mapped to 0 by `(score - baseline) / (1 - baseline)`, as given in
            the package's folder rescale_baseline for the layer and the part; None leaves the score as it is.
        device: Device of the network, see `SharesWeights`.
        batch_tokens: Maximum number of tokens in one forward pass.
        cache_size: Number of pairs whose scores are cached.

    Raises:
        NotFoundError: If the folder or a file is missing; the message says where the weights come from.
        UserError: If the files cannot be read, or a setting is out of range.

    Example:
        >>> score = BERTScore("distilroberta-base", layer=5)  # doctest: +SKIP
        >>> score(["No effusion."], ["No pleural effusion."]).shape  # doctest: +SKIP
        torch.Size([1])
    """

    def __init__(
        self,
        encoder: str | Path,
        layer: int | None = None,
        part: Literal["precision", "recall", "f1"] = "f1",
        idf: Sequence[str] | None = None,
        baseline: float | None = None,
        device: str | torch.device | None = None,
        batch_tokens: int = 4096,
        cache_size: int = 65_536,
    ) -> None:
        super().__init__(device, batch_tokens, cache_size)
        if part not in PARTS:
            raise UserError(f"Expected argument `part` to be one of {', '.join(PARTS)}, but got {part!r}.")
        if baseline is not None and not baseline < 1:
            raise UserError(f"Expected argument `baseline` to be below 1, but got {baseline}.")
        self.encoder, self.layer, self.part, self.baseline = encoder, layer, part, baseline
        self.name = f"BERTScore {'F1' if part == 'f1' else part}{'' if idf is None else ' idf'}"
        self._shared.weights = self._read()
        self.idf: dict[int, float] | None = None if idf is None else self._frequencies(idf)

    def settings(self) -> dict[str, Any]:
        """Arguments that determine the scores, as JSON values; of `idf` the number of tokens."""
        return {**super().settings(), "idf": None if self.idf is None else len(self.idf) - 1}

    def _read(self) -> Encoder:
        return read_encoder(self.encoder, "BERTScore", REMEDY, layers=self.layer)

    def _network(self) -> Encoder:
        shared = self._shared
        if shared.network is None:
            encoder: Encoder = shared.weights or self._read()
            encoder.model.to(self._place())
            shared.network, shared.weights = encoder, None
        network: Encoder = shared.network
        return network

    def _frequencies(self, texts: Sequence[str]) -> dict[int, float]:
        """Inverse document frequency of each token, and that of tokens in no text as number -1."""
        check_texts(texts, "idf")
        if not texts:
            raise UserError("Expected argument `idf` to hold at least one text, but got none.")
        encoder: Encoder = self._shared.weights
        counts = Counter(token for ids in _tokens(encoder, list(map(encodable, texts))) for token in set(ids))
        number = len(texts) + 1
        return {-1: math.log(number)} | {token: math.log(number / (count + 1)) for token, count in counts.items()}

    def _scores(self, pairs: list[Pair]) -> list[float]:
        values = self._remember(pairs, digest_pair, self._match)
        scores = [values[pair][PARTS.index(self.part)] for pair in pairs]
        if self.baseline is None:
            return scores
        return [(score - self.baseline) / (1 - self.baseline) for score in scores]

    def _match(self, pairs: list[Pair]) -> dict[Pair, tuple[float, float, float]]:
        """Pair -> precision, recall and F1."""
        found: dict[Pair, tuple[float, float, float]] = {}
        for start in range(0, len(pairs), _PAIRS):
            some = pairs[start : start + _PAIRS]
            with exact_inference(self._place()):
                values = self._matched(some)
            found.update(zip(some, values, strict=True))
        return found

    def _matched(self, pairs: list[Pair]) -> list[tuple[float, float, float]]:
        encoder = self._network()
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = dict(zip(texts, _tokens(encoder, texts), strict=True))
        states = encoder.outputs([ids[text] for text in texts], self.batch_tokens)
        vectors = {text: state / state.norm(dim=-1, keepdim=True) for text, state in zip(texts, states, strict=True)}
        weights = {text: self._weights(encoder, ids[text]).to(states[0].device) for text in texts}
        means = []
        for pred, reference in pairs:
            cosines = vectors[pred] @ vectors[reference].T  # (tokens of the report, tokens of the reference)
            best = cosines.amax(1).double() @ weights[pred], cosines.amax(0).double() @ weights[reference]
            means.append(torch.stack(best))
        return [_f1(*values) for values in torch.stack(means).tolist()]

    def _weights(self, encoder: Encoder, ids: list[int]) -> Tensor:
        """(L,) float64 weights of tokens with sum 1, or 0 if no token counts."""
        tokenizer = encoder.tokenizer
        if self.idf is None:
            special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
            values = [float(token not in special) for token in ids]
        else:
            rare = self.idf[-1]
            values = [self.idf.get(token, rare) for token in ids]
        weights = torch.tensor(values, dtype=torch.float64)
        if len(ids) <= len(tokenizer("")["input_ids"]) or not float(weights.sum()):
            return torch.zeros_like(weights)
        return weights / weights.sum()


def _tokens(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    from transformers import GPT2Tokenizer, RobertaTokenizer

    space = " " if isinstance(encoder.tokenizer, (GPT2Tokenizer, RobertaTokenizer)) else ""
    return encoder.tokens([space + text if (text := raw.strip()) else "" for raw in texts])


def _f1(precision: float, recall: float) -> tuple[float, float, float]:
    if not precision or not recall:  # a text without tokens
        return 0.0, 0.0, 0.0
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
