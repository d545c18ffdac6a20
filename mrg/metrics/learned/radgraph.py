"""RadGraph F1 (Delbrouck et al., 2022; Jain et al., 2021): overlap of the entities and relations of two reports.

Equal to F1RadGraph of the package radgraph 0.1.18, its choices included: a level compares the text of an entity with
its class; upper and lower case differ except within relations of the level "complete"; a report without entities
scores 0, also against another one without entities.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch

from mrg.errors import UserError
from mrg.metrics.labels import check_texts
from mrg.metrics.learned.base import LearnedScore, Pair, encodable
from mrg.metrics.learned.radgraph_checkpoint import Checkpoint, read_checkpoint
from mrg.metrics.learned.radgraph_network import Entity, RadGraphNetwork
from mrg.metrics.packed import digest_text
from mrg.metrics.shared import exact_inference

Graph = Sequence[Entity]
_TEXTS = 64  # whose word states are held at a time


class RadGraphF1(LearnedScore):
    """F1 of entities and relations, a scorer for metrics and rewards.

    Args:
        checkpoint: Archive of weights, such as radgraph-xl.tar.gz, or the folder with its files. The folder is faster
            to read.
        encoder: Folder with config.json and tokenizer of the encoder that the archive names, without its weights.
        level: What is compared: `"simple"`, entities; `"partial"` (RG_ER, the most reported one), entities and whether
            they start a relation; `"complete"`, entities with their relations; `"combined"`, the mean of the F1 of
            entities and that of relations (Yu et al., 2023), a part of RadCliQ.
        namespace: Name of the heads, if the checkpoint has several.
        device: Device of the network, see `SharesWeights`.
        batch_tokens: Maximum number of tokens in one forward pass.
        cache_size: Number of texts whose entities are cached.

    Raises:
        NotFoundError: If the weights or the encoder are missing; the message says where they come from.
        UserError: If they cannot be read, or the level is unknown.

    Example:
        >>> score = RadGraphF1("radgraph-xl.tar.gz", "BiomedBERT")  # doctest: +SKIP
        >>> score(["No effusion."], ["No pleural effusion."]).shape  # doctest: +SKIP
        torch.Size([1])
    """

    def __init__(
        self,
        checkpoint: str | Path,
        encoder: str | Path | None = None,
        level: str = "partial",
        namespace: str | None = None,
        device: str | torch.device | None = None,
        batch_tokens: int = 4096,
        cache_size: int = 65_536,
    ) -> None:
        super().__init__(device, batch_tokens, cache_size)
        if level not in LEVELS:
            raise UserError(f"Expected argument `level` to be one of {', '.join(LEVELS)}, but got {level!r}.")
        self.checkpoint, self.encoder, self.level = checkpoint, encoder, level
        self.namespace = namespace
        content = self._shared.weights = self._read()
        self.name = f"RadGraph F1 {level}"
        self.namespace = content.namespace

    def graphs(self, texts: Sequence[str]) -> list[Graph]:
        """Entities of each text, in reading order.

        Raises:
            UserTypeError: If something is not a string.
        """
        check_texts(texts)
        with self._shared.lock:
            found = self._remember([encodable(text) for text in texts], digest_text, self._annotate)
        return [found[encodable(text)] for text in texts]

    def _scores(self, pairs: list[Pair]) -> list[float]:
        found = self._remember([text for pair in pairs for text in pair], digest_text, self._annotate)
        return [
            LEVELS[self.level](found[pred], found[target]) if found[pred] and found[target] else 0.0
            for pred, target in pairs
        ]

    def _annotate(self, texts: list[str]) -> dict[str, Graph]:
        graphs: dict[str, Graph] = {}
        if not texts:
            return graphs
        network = self._network()
        with exact_inference(network.device):
            for start in range(0, len(texts), _TEXTS):
                some = texts[start : start + _TEXTS]
                graphs.update(zip(some, map(tuple, network.graphs(some, self.batch_tokens)), strict=True))
        return graphs

    def _read(self) -> Checkpoint:
        return read_checkpoint(self.checkpoint, self.encoder, self.namespace)

    def _network(self) -> RadGraphNetwork:
        shared = self._shared
        if shared.network is None:
            shared.network = RadGraphNetwork(shared.weights or self._read(), self._place())
            shared.weights = None
        network: RadGraphNetwork = shared.network
        return network


def f1(pred: set[Hashable], target: set[Hashable]) -> float:
    """F1 of two sets; 0 if they share nothing, also if both are empty."""
    shared = len(pred & target)
    return 2 * shared / (len(pred) + len(target)) if shared else 0.0


def _entities(graph: Graph) -> set[Hashable]:
    return {(entity.text, entity.label) for entity in graph}


def _partial(graph: Graph) -> set[Hashable]:
    return {(entity.text, entity.label, bool(entity.relations)) for entity in graph}


def _complete(graph: Graph) -> set[Hashable]:
    alone: set[Hashable] = {(entity.text, entity.label) for entity in graph if not entity.relations}
    return alone | {
        (entity.text.lower(), entity.label, kind, graph[end].text.lower())
        for entity in graph
        for kind, end in entity.relations
    }


def _relations(graph: Graph) -> set[Hashable]:
    return {
        (entity.text, entity.label, graph[end].text, graph[end].label, kind)
        for entity in graph
        for kind, end in entity.relations
    }


LEVELS: dict[str, Callable[[Graph, Graph], float]] = {
    "simple": lambda pred, target: f1(_entities(pred), _entities(target)),
    "partial": lambda pred, target: f1(_partial(pred), _partial(target)),
    "complete": lambda pred, target: f1(_complete(pred), _complete(target)),
    "combined": lambda pred, target: (
        (f1(_entities(pred), _entities(target)) + f1(_relations(pred), _relations(target))) / 2
    ),
}
