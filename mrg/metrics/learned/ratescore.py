"""RaTEScore (Zhao et al., 2024): similarity of the medical entities of two reports, with their types.

A token classifier finds entities of five types in each sentence; each entity is matched with the most similar one of
the other report by the embeddings of a second network, weighted by a matrix of types and less if one denies the other.
Equal to the package RaTEScore 0.6.0 scoring one pair at a time, also in how it joins tokens to entities. The
differences:

- A report without any sentence has no entities; in the package it shifts all later reports by one.
- If several entities of the other report are equally similar, such as a word that occurs with two types, the first one
  counts; in the package rounding decides.
- Texts and entities are encoded once, in batches sorted by length, and cached.

As in the package, a pair in which a report has no entity scores 0.5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.errors import MissingPackageError, UserError, install
from mrg.metrics.labels import check_texts
from mrg.metrics.learned.base import LearnedScore, Pair, encodable
from mrg.metrics.learned.encoder import Encoder, read_encoder
from mrg.metrics.packed import digest_text
from mrg.metrics.shared import exact_inference

REMEDY = (
    "RaTEScore needs two models from Hugging Face, see there for their licenses: Angelakeke/RaTE-NER-Deberta, which "
    "finds entities, and FremyCompany/BioLORD-2023-C, which embeds them; download each once, `hf download NAME "
    "--local-dir FOLDER`, and pass the folders."
)
TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
_PRESENT, _ABSENT = {"ABNORMALITY", "DISEASE"}, {"NON-ABNORMALITY", "NON-DISEASE"}
_MAX_ENTITY_TOKENS, _TEXTS, _EQUAL = 30, 64, 1e-5


class Weights(NamedTuple):
    """Weights that the authors fitted to radiologists' ratings.

    Args:
        affinity: Weight of a match, by the type of the entity (row) and that of its match (column), in the order of
            `TYPES`.
        negation: Factor of a match of a present with an absent finding.
    """

    affinity: tuple[tuple[float, ...], ...]
    negation: float


# Parameters of the package (MIT), rounded to 12 digits: for whole reports, its default, and for short ones.
WEIGHTS = {
    "long": Weights(
        (
            (0.427611916439, 0.624092999061, 0.003447818111, 0.543104970022, 0.270054253862),
            (0.748782427434, 0.285613485916, 0.459214322216, 0.020970551399, 0.000137363141),
            (0.839651007573, 0.995020938854, 0.846055503058, 0.982068902051, 0.378913670810),
            (0.165467646537, 0.018670610692, 0.719397354576, 0.000935716607, 0.092733356427),
            (0.775942023121, 0.183913929371, 0.100730460763, 0.038601838119, 0.340656814866),
        ),
        0.871655396649,
    ),
    "short": Weights(
        (
            (0.407029331837, 0.695263961061, 0.283425294662, 0.947914865801, 0.238750641111),
            (0.582975995044, 0.770959075192, 0.000605963483, 0.794672584951, 0.279829424008),
            (0.884039761983, 0.963765944570, 0.190189584381, 0.696228391480, 0.943727057947),
            (0.171274428690, 0.448514967150, 0.000450653298, 0.000788793032, 0.855543284090),
            (0.955580106621, 0.131221061626, 0.607299658592, 0.056507111412, 0.321476939979),
        ),
        0.361157785435,
    ),
}


class Named(NamedTuple):
    """An entity of a report: its text and one of `TYPES`."""

    text: str
    type: str


class RaTEScore(LearnedScore):
    """Similarity of medical entities, a scorer for metrics and rewards: 0 to 1.

    Args:
        ner: Folder of the token classifier RaTE-NER-Deberta.
        encoder: Folder of the encoder of entities, BioLORD-2023-C.
        weights: `"long"`, for whole reports, or `"short"`.
        sentences: `"medspacy"`, the package's splitter (an extra); `"punctuation"`, which needs no package and splits
            after a full stop, question or exclamation mark and at line breaks, and so gives other scores where the two
            differ; or a function from a text to its sentences.
        device: Device of the networks, see `SharesWeights`.
        batch_tokens: Maximum number of tokens in one forward pass.
        cache_size: Number of texts and entities that are cached.

    Raises:
        NotFoundError: If a folder or a file is missing; the message says where the weights come from.
        UserError: If the files cannot be read, or a setting is unknown.
        MissingPackageError: If medspacy is needed and not installed.
    """

    def __init__(
        self,
        ner: str | Path,
        encoder: str | Path,
        weights: str = "long",
        sentences: str | Callable[[str], Sequence[str]] = "medspacy",
        device: str | torch.device | None = None,
        batch_tokens: int = 4096,
        cache_size: int = 65_536,
    ) -> None:
        super().__init__(device, batch_tokens, cache_size)
        if weights not in WEIGHTS:
            raise UserError(f"Expected argument `weights` to be one of {', '.join(WEIGHTS)}, but got {weights!r}.")
        if not callable(sentences) and sentences not in SPLITTERS:
            known = ", ".join(SPLITTERS)
            raise UserError(f"Expected argument `sentences` to be a function or one of {known}, but got {sentences!r}.")
        self.ner, self.encoder, self.weights, self.sentences = ner, encoder, weights, sentences
        self.name = "RaTEScore" if weights == "long" else f"RaTEScore {weights}"
        self._splitter()
        self._shared.weights = self._read()

    def entities(self, texts: Sequence[str]) -> list[tuple[Named, ...]]:
        """Entities of each text, in reading order.

        Raises:
            UserTypeError: If something is not a string.
        """
        check_texts(texts)
        with self._shared.lock:
            found = self._remember([encodable(text) for text in texts], digest_text, self._find)
        return [found[encodable(text)] for text in texts]

    def settings(self) -> dict[str, Any]:
        """Arguments that determine the scores, as JSON values."""
        name = self.sentences if isinstance(self.sentences, str) else getattr(self.sentences, "__name__", "function")
        return {**super().settings(), "sentences": name}

    def _scores(self, pairs: list[Pair]) -> list[float]:
        found = self._remember([text for pair in pairs for text in pair], digest_text, self._find)
        texts = dict.fromkeys(entity.text for entities in found.values() for entity in entities)
        vectors = self._remember(texts, lambda text: digest_text(f"entity {text}"), self._embed)
        table = WEIGHTS[self.weights]
        scores = []
        for pred, target in pairs:
            sides = [(found[text], [vectors[entity.text] for entity in found[text]]) for text in (target, pred)]
            if not found[pred] or not found[target]:
                scores.append(0.5)
                continue
            one, other = (matched(*sides[i], *sides[1 - i], table) for i in (0, 1))
            scores.append(2 * one * other / (one + other) if one + other else 0.0)
        return scores

    def _find(self, texts: list[str]) -> dict[str, tuple[Named, ...]]:
        """Text -> its entities."""
        found: dict[str, tuple[Named, ...]] = {}
        if not texts:
            return found
        split, (ner, _) = self._splitter(), self._networks()
        names = ner.model.config.id2label
        for start in range(0, len(texts), _TEXTS):
            some = texts[start : start + _TEXTS]
            owned = [(text, part) for text in some for part in map(str.strip, split(text)) if len(part) >= 3]
            ids = ner.tokens([sentence for _, sentence in owned])
            with exact_inference(self._place()):
                labels = [logits.argmax(-1).tolist() for logits in ner.outputs(ids, self.batch_tokens, "logits")]
            entities: dict[str, list[Named]] = {text: [] for text in some}
            for (text, _), own, classes in zip(owned, ids, labels, strict=True):
                tokens = ner.tokenizer.convert_ids_to_tokens(own)
                for first, last, kind in join_tokens(tokens, [names[number] for number in classes]):
                    words = ner.tokenizer.convert_tokens_to_string(tokens[first : last + 1])
                    entities[text].append(Named(words, kind))
            found.update((text, tuple(own)) for text, own in entities.items())
        return found

    def _embed(self, texts: list[str]) -> dict[str, Tensor]:
        """Text of an entity -> its normalized embedding on the CPU, the first position of the last layer."""
        if not texts:
            return {}
        encoder = self._networks()[1]
        short = encoder._replace(max_tokens=min(_MAX_ENTITY_TOKENS, encoder.max_tokens))
        with exact_inference(self._place()):
            states = short.outputs(short.tokens(texts), self.batch_tokens)
            vectors = F.normalize(torch.stack([state[0] for state in states]), dim=1).cpu()
        return dict(zip(texts, vectors, strict=True))

    def _read(self) -> tuple[Encoder, Encoder]:
        ner = read_encoder(self.ner, "RaTEScore's entities", REMEDY, "AutoModelForTokenClassification")
        kinds = {name[2:].upper() for name in ner.model.config.id2label.values() if name != "O"}
        if kinds != set(TYPES):
            raise UserError(
                f"Expected the types of entities in {self.ner} to be {', '.join(TYPES)}, but got "
                f"{', '.join(sorted(kinds))[:200]}: {REMEDY}"
            )
        return ner, read_encoder(self.encoder, "RaTEScore's encoder", REMEDY)

    def _networks(self) -> tuple[Encoder, Encoder]:
        shared = self._shared
        if shared.network is None:
            shared.network, shared.weights = shared.weights or self._read(), None
            for encoder in shared.network:
                encoder.model.to(self._place())
        networks: tuple[Encoder, Encoder] = shared.network
        return networks

    def _splitter(self) -> Callable[[str], Sequence[str]]:
        shared = self._shared
        if shared.tokenizer is None:
            shared.tokenizer = SPLITTERS[self.sentences]() if isinstance(self.sentences, str) else self.sentences
        splitter: Callable[[str], Sequence[str]] = shared.tokenizer
        return splitter


def join_tokens(tokens: Sequence[str], labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """First token, last token and type of the entities of a sentence, from labels in the IOB scheme.

    An entity ends where the next label does not continue it; its type is that of its first token. The order of the
    rules is that of the package, also where labels are inconsistent.
    """
    spans: list[tuple[int, int, str]] = []
    start: int | None = None
    ended, kind = False, ""
    for i, (token, label, after) in enumerate(zip(tokens[:-1], labels[:-1], labels[1:], strict=True)):
        if token in ("[CLS]", "[SEP]") or label == "O":
            continue
        begins = label.startswith("B-")
        if after.startswith("I-"):
            if begins:
                start, kind = i, label[2:]
            continue
        if begins:
            spans.append((i, i, label[2:]))
        elif start is not None:
            spans.append((start, i, kind))
        # Before another entity the package keeps this token as a start, which has already ended.
        start, ended, kind = (i, True, label[2:]) if after.startswith("B-") else (None, False, kind)
    if start is not None and not ended:  # the label of the last special token continues the entity
        spans.append((start, len(tokens) - 2, kind))
    return spans


def matched(
    entities: Sequence[Named],
    vectors: Sequence[Tensor],
    others: Sequence[Named],
    found: Sequence[Tensor],
    table: Weights,
) -> float:
    """Weighted mean similarity of entities with the most similar one of another report."""
    cosines = torch.stack(list(vectors)) @ torch.stack(list(found)).T
    best = cosines.amax(1)
    places = (cosines >= best[:, None] - _EQUAL).int().argmax(1)  # the first of those that differ by rounding alone
    total = weight = 0.0
    for entity, value, place in zip(entities, best.tolist(), places.tolist(), strict=True):
        one, other = entity.type.upper(), others[place].type.upper()
        affinity = table.affinity[TYPES.index(one)][TYPES.index(other)]
        opposed = {one, other} & _PRESENT and {one, other} & _ABSENT
        total += value * affinity * (table.negation if opposed else 1.0)
        weight += affinity
    return total / weight  # no affinity is 0


def _medspacy() -> Callable[[str], list[str]]:
    try:
        import medspacy
    except ImportError as error:
        raise MissingPackageError(
            f"RaTEScore splits sentences by medspacy, which is not installed: {install('ratescore')}, or pass "
            "sentences='punctuation', which gives other scores where the two differ."
        ) from error
    pipeline = medspacy.load(medspacy_enable=["medspacy_pyrush"])
    return lambda text: [str(sentence) for sentence in pipeline(text).sents]


def _by_punctuation() -> Callable[[str], list[str]]:
    return lambda text: re.split(r"(?<=[.!?])\s+|\n+", text)


SPLITTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {
    "medspacy": _medspacy,
    "punctuation": _by_punctuation,
}
