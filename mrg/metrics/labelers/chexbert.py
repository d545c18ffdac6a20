"""CheXbert (Smit et al., 2020): the 14 labels of a report from a BERT that was trained on radiologists' labels.

As in the original, white space is collapsed, the text is truncated to 512 tokens, and the label of each head is the
class with the highest score. The differences affect speed, not labels:

- Equal texts in a call are labelled once, and known texts come from a cache.
- The others are sorted by length and run in batches of at most `batch_tokens` tokens without padding
  (`chexbert_network.py`).
- The row of an empty report is blank; the original runs the network on an empty input.

Scores differ from those of one report at a time in the last digits of float32, so a label can differ only where two
classes of one head agree to about 5 digits. bfloat16 is faster on hardware that supports it, but changes labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import BLANK, NUM_CONDITIONS
from mrg.metrics.labelers.chexbert_checkpoint import REPOSITORY, find_checkpoint, read_checkpoint, read_tokenizer
from mrg.metrics.labelers.chexbert_network import CheXbertNetwork
from mrg.metrics.labels import Labeler, check_texts
from mrg.metrics.packed import digest_text
from mrg.metrics.shared import SharesWeights, batches

MAX_TOKENS = 512
_BLANK_ROW = bytes([BLANK] * NUM_CONDITIONS)


class CheXbertLabeler(SharesWeights, Labeler):
    """Label reports with CheXbert's published weights, which are not part of `mrg`.

    It is not an `nn.Module`: its weights are not parameters of a metric or model that uses it, and `.train()` does not
    affect it. Copies share the weights; a pickle contains only the settings, and the weights are read again after
    loading. Calls from several threads are serialized.

    Args:
        checkpoint: Hub id, `.pth` or `.safetensors` file, or folder, see `find_checkpoint`. It is read and checked at
            once, so that a wrong path fails early.
        tokenizer: Hub id or folder of the tokenizer of bert-base-uncased, because the checkpoint contains no
            vocabulary. A folder must contain vocab.txt or tokenizer.json.
        device: Device of the network. `None` selects the current GPU at the first call, so that each process of a run
            on several GPUs uses its own, or the CPU if there is no GPU.
        dtype: `"float32"` or `"bfloat16"`, which is faster and takes half the memory, but changes labels: 43 of 896
            with the random weights of benchmarks/labeling.py, which also measures other checkpoints.
        batch_tokens: Maximum number of tokens in one forward pass; a longer report is run alone.
        cache_size: Number of texts whose labels are cached; the least recently used is dropped first. 0 caches none.

    Raises:
        NotFoundError: If the checkpoint or the tokenizer is not found; the message says how to get it.
        UserError: If the checkpoint or the tokenizer is not CheXbert's, or a setting is out of range.

    Example:
        >>> labeler = CheXbertLabeler("chexbert.pth")  # doctest: +SKIP
        >>> labeler(["Small left effusion. No pneumothorax."]).shape  # doctest: +SKIP
        torch.Size([1, 14])
    """

    def __init__(
        self,
        checkpoint: str | Path = REPOSITORY,
        tokenizer: str | Path = "bert-base-uncased",
        device: str | torch.device | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_tokens: int = 1024,
        cache_size: int = 65_536,
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise UserError(f"Expected argument `dtype` to be float32 or bfloat16, but got {dtype!r}.")
        super().__init__(device, batch_tokens, cache_size)
        # Results carry this name; those of bfloat16 differ.
        self.name = "chexbert" if dtype == "float32" else f"chexbert-{dtype}"
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.dtype = dtype
        self._read()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports in English; empty ones are allowed.

        Returns:
            int64 (N, 14) on the CPU, as described in `Labeler`.

        Raises:
            TypeError: If something in `texts` is not a string; the message gives its index.
            RuntimeError: If the network's scores are not finite.
        """
        check_texts(texts)
        prepared = [prepare(text) for text in texts]
        if not prepared:
            return torch.zeros(0, NUM_CONDITIONS, dtype=torch.int64)
        with self._shared.lock:
            rows = self._rows(prepared)
        flat = torch.frombuffer(bytearray(b"".join([rows[text] for text in prepared])), dtype=torch.uint8)
        return flat.view(-1, NUM_CONDITIONS).long()

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Embeddings that CheXbert's heads read: float32 (N, H) on the CPU; not cached.

        Raises:
            UserTypeError: If something in `texts` is not a string.
        """
        check_texts(texts)
        prepared = [prepare(text) for text in texts]
        with self._shared.lock:
            found: dict[str, Tensor] = {}
            for batch in self._batches(list(dict.fromkeys(prepared))):
                vectors = self._network().embeddings([ids for _, ids in batch])
                found.update((text, vector) for (text, _), vector in zip(batch, vectors, strict=True))
        return torch.stack([found[text] for text in prepared]) if prepared else torch.zeros(0, 0)

    def _rows(self, texts: list[str]) -> dict[str, bytes]:
        """Text -> row of each distinct prepared text."""
        rows = self._remember([text for text in texts if text], digest_text, self._label)
        return {"": _BLANK_ROW, **rows}

    def _label(self, texts: list[str]) -> dict[str, bytes]:
        """Text -> row, computed by the network."""
        rows: dict[str, bytes] = {}
        for batch in self._batches(texts):
            labels = self._network().labels([ids for _, ids in batch]).tolist()
            rows.update((text, bytes(row)) for (text, _), row in zip(batch, labels, strict=True))
        return rows

    def _batches(self, texts: list[str]) -> Iterator[list[tuple[str, list[int]]]]:
        """Batches of texts with their tokens, the longest ones first."""
        if not texts:
            return iter(())
        max_length = min(MAX_TOKENS, self._network().max_tokens)
        ids = self._shared.tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        longest_first = sorted(zip(texts, ids, strict=True), key=lambda pair: len(pair[1]), reverse=True)
        return batches(longest_first, self.batch_tokens)

    def _network(self) -> CheXbertNetwork:
        shared = self._shared
        if shared.network is None:
            weights = self._read() if shared.weights is None else shared.weights
            shared.network, shared.weights = CheXbertNetwork(weights, self._place(), getattr(torch, self.dtype)), None
        network: CheXbertNetwork = shared.network
        return network

    def _read(self) -> dict[str, Tensor]:
        """Find and check the checkpoint and the tokenizer."""
        weights = read_checkpoint(find_checkpoint(self.checkpoint))
        vocab_size = len(weights["bert.embeddings.word_embeddings.weight"])
        self._shared.tokenizer = read_tokenizer(self.tokenizer, vocab_size)
        self._shared.weights = weights
        return weights


def prepare(text: str) -> str:
    """The text in CheXbert's form: one line, words separated by single spaces.

    A lone surrogate, which a tokenizer would refuse, becomes a replacement character, which BERT ignores.
    """
    text = re.sub(r"\s+", " ", text.strip()).strip()
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
