"""RadGraph's network: entities and relations of a report by DyGIE++ (Wadden et al., 2019) without coreferences.

Choices that equal the original's: a word is the mean of its word pieces, which are encoded in segments of the largest
length; a span is the states of its first and last word and an embedding of its width; each span has the best class,
none if no score is above 0; relations are scored between the spans that the pruner ranks highest, in reading order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mrg.metrics.learned.radgraph_checkpoint import Checkpoint


class Entity(NamedTuple):
    """A span of words.

    Args:
        text: Its words, separated by spaces.
        label: Class, such as `Observation::definitely absent`.
        relations: Type, and position in the report's list of entities, of each relation that starts here.
    """

    text: str
    label: str
    relations: tuple[tuple[str, int], ...]


class RadGraphNetwork:
    """Entities and relations of texts.

    Args:
        checkpoint: Content of the archive; its tensors are moved to the device.
        device: Device of the network.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.encoder = checkpoint.encoder
        self.encoder.model.to(device)
        self.weights = {name: tensor.to(device) for name, tensor in checkpoint.weights.items()}
        self.device = device

    def graphs(self, texts: Sequence[str], batch_tokens: int) -> list[list[Entity]]:
        """Entities of each text in reading order."""
        words = [split_words(text, self.checkpoint.namespace) for text in texts]
        states = self._word_states(words, batch_tokens)
        return [self._graph(own, state) if own else [] for own, state in zip(words, states, strict=True)]

    def _word_states(self, words: Sequence[Sequence[str]], batch_tokens: int) -> list[Tensor]:
        """(W, H) for each text; the state of a word without word pieces is 0."""
        pieces = [self._pieces(own) for own in words]
        tokenizer, room = self.encoder.tokenizer, self.checkpoint.segment - 2
        segments, owners = [], []
        for index, own in enumerate(pieces):
            flat = [piece for word in own for piece in word]
            for start in range(0, len(flat), room):
                segments.append([tokenizer.cls_token_id, *flat[start : start + room], tokenizer.sep_token_id])
                owners.append(index)
        parts: list[list[Tensor]] = [[torch.zeros(0, self.encoder.model.config.hidden_size)] for _ in words]
        for owner, output in zip(owners, self.encoder.outputs(segments, batch_tokens), strict=True):
            parts[owner].append(output[1:-1])
        states = []
        for own, found in zip(pieces, parts, strict=True):
            flat_states = torch.cat([part.to(self.device) for part in found])  # (P, H), all word pieces of a text
            split = flat_states.split([len(word) for word in own])
            means = [part.sum(0) / max(len(part), 1) for part in split]
            states.append(torch.stack(means) if own else flat_states)
        return states

    def _pieces(self, words: Sequence[str]) -> list[list[int]]:
        """Tokens of each word."""
        if not words:
            return []
        normalized = [_NORMALIZED.get(word, word) for word in words]
        pieces: list[list[int]] = self.encoder.tokenizer(normalized, add_special_tokens=False)["input_ids"]
        return pieces

    def _graph(self, words: Sequence[str], states: Tensor) -> list[Entity]:
        check = self.checkpoint
        count = len(words)
        spans = [(i, j) for i in range(count) for j in range(i, min(i + check.max_width, count))]
        first, last = torch.tensor(spans, device=self.device).T
        vectors = torch.cat([states[first], states[last], self.weights["width"][last - first]], -1)  # (S, 2H + F)
        classes = _best(self._head(vectors, "ner"))
        labels = {span: label for span, label in zip(spans, classes.tolist(), strict=True) if label}
        order = {span: place for place, span in enumerate(labels)}
        relations: dict[tuple[int, int], list[tuple[str, int]]] = {span: [] for span in labels}
        for start, end, kind in self._relations(vectors, spans, count):
            if start in order and end in order:
                relations[start].append((check.relations[kind - 1], order[end]))
        return [
            Entity(" ".join(words[i : j + 1]), check.labels[label], tuple(relations[i, j]))
            for (i, j), label in labels.items()
        ]

    def _relations(self, vectors: Tensor, spans: Sequence[tuple[int, int]], count: int) -> list[tuple[Span, Span, int]]:
        """Start, end and type of each relation."""
        share = torch.tensor(float(count)) * self.checkpoint.spans_per_word  # float32, as it is rounded up
        mention = self._head(vectors, "mention")[:, 0]
        kept = mention.topk(min(max(int(share.ceil()), 1), len(spans))).indices.sort().values
        own, scores = vectors[kept], mention[kept]
        pairs = (own[:, None].expand(-1, len(own), -1), own[None].expand(len(own), -1, -1))
        values = self._head(torch.cat([*pairs, pairs[0] * pairs[1]], -1), "relation")  # (K, K, R)
        types = _best(values + (scores[:, None] + scores[None])[..., None])
        places = types.nonzero().tolist()
        names = [spans[index] for index in kept.tolist()]
        return [(names[i], names[j], int(kind)) for (i, j), kind in zip(places, types[types > 0].tolist(), strict=True)]

    def _head(self, x: Tensor, head: str) -> Tensor:
        layers = sum(name.startswith(f"{head}.") and name.endswith(".weight") for name in self.weights)
        for index in range(layers):
            x = F.linear(x, self.weights[f"{head}.{index}.weight"], self.weights[f"{head}.{index}.bias"])
            x = F.relu(x) if index < layers - 1 else x
        return x


Span = tuple[int, int]
_NORMALIZED = {"/.": ".", "/?": "?"}  # of the transcripts for which the reader was written


def _best(scores: Tensor) -> Tensor:
    """Best class, 0 for none, whose score is 0."""
    return F.pad(scores, (1, 0)).argmax(-1)


def split_words(text: str, namespace: str) -> list[str]:
    """Words of a report as the package splits them: one way for RadGraph 1.0, another for all later models."""
    if namespace == "radgraph":
        return re.sub(r"([/,:.!?()])", r" \1 ", text).split()
    for old, new in (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``")):
        text = text.replace(old, new)
    text = " ".join(re.findall(r"\w+|[^\w\s]+", text))
    for joined in (").", "%.", ".'", "%,", "%)"):
        text = text.replace(joined, f"{joined[0]} {joined[1]}")
    return text.split()
