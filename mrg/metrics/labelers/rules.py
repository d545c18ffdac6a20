"""A rule-based labeler for English chest-radiograph reports: fast, deterministic, and able to show its evidence.

Phrases (`phrases.py`) are looked up in the text (`lexicon.py`) and read in one pass with scopes of negation and
uncertainty (`scopes.py`). Conditions and conventions are those of the CheXpert labeler (Irvin et al., 2019) and
CheXbert (Smit et al., 2020); these are the choices, and where they leave the CheXpert labeler:

- Several mentions of one condition: positive > uncertain > negative (as CheXpert).
- No Finding is 1 exactly when none of the 12 pathologies is positive or uncertain, and the text has at least one word:
  who writes nothing has not said that all is well. CheXpert also counts findings outside the 14 conditions against it,
  such as emphysema.
- Conditions do not imply each other: Lung Opacity needs a mention of its own (opacity, infiltrate, airspace disease,
  scar), "consolidation" does not set it (as CheXpert). A nodular opacity is a Lung Lesion and a Lung Opacity; a
  calcified granuloma is neither (as CheXpert).
- "Lungs are clear" leaves Lung Opacity and Consolidation blank (as CheXpert), and "no acute osseous abnormality" leaves
  Fracture blank (as CheXpert): nothing named is denied.
- Heart and mediastinum: a size that is normal, within or at the upper limits of normal, or not enlarged is negative;
  enlarged, large or prominent is positive, and so is a heart that "has increased"; borderline is uncertain; "stable"
  (CheXpert: uncertain) or "has decreased" alone is blank, because it states no size. "Cardiomediastinal silhouette" is
  Enlarged Cardiomediastinum, not Cardiomegaly (as CheXpert).
- Blunted costophrenic angles are an uncertain Pleural Effusion, because fluid and scars both blunt them: of 33 training
  studies of IU X-Ray whose findings speak of blunting alone, 12 were indexed as effusion. Sharp or clear angles and
  clear pleural spaces are a negative one (CheXpert: blank).
- "Possible", "probable", "may represent", "suggesting", "versus", "A or B", "cannot be excluded" are uncertain (as
  CheXpert). "Likely", "consistent with", "compatible with" and de-identified words (XXXX) leave a finding positive.
- Vascular congestion is an uncertain Edema, and fibrosis is Pleural Other (both as CheXpert). Congestion or engorgement
  that "is within normal limits" is negative.
- "Unchanged", "improved", "resolving" and "healed" findings are positive; "resolved", "cleared" and "removed" ones are
  negative; "no new" is negative (CheXpert: uncertain).
- "Effusion: none" and "Effusion: no" are negative.
- "Evaluate for", "history of", "if there is concern for", "to exclude" and "may not be demonstrated" state nothing, old
  or granulomatous infection is no Pneumonia, and sections such as Indication and Comparison are skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import BLANK, CONDITIONS, NUM_CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.base import Labeler, check_texts
from mrg.metrics.labelers.layout import HARD
from mrg.metrics.labelers.lexicon import OTHER, Lexicon, Tokens
from mrg.metrics.labelers.scopes import Reader

_NO_FINDING = CONDITIONS.index("No Finding")
_ABNORMAL = [*(index for index, name in enumerate(CONDITIONS) if name not in ("Support Devices", "No Finding")), OTHER]
# Index = label class: the strongest statement about a condition wins.
_STRENGTH = (0, 3, 1, 2)
CONVENTIONS = ("chexbert", "plain")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One place in a text that speaks of one condition.

    Args:
        condition: A name of `CONDITIONS`.
        label: POSITIVE, NEGATIVE or UNCERTAIN, as this place states it.
        start: First character of the sentence.
        end: One past the last character of the sentence.
        cue: The words that decided the label: a negation, a doubt or a state such as "enlarged"; where the finding
            stands plainly asserted, the words that name it.
        mention_start: First character of the words that name the finding or the structure.
        mention_end: One past their last character.
    """

    condition: str
    label: int
    start: int
    end: int
    cue: str
    mention_start: int
    mention_end: int


class RulesLabeler(Labeler):
    """Label reports with rules; see the module for every convention.

    Equal texts are labelled once per call, and rows are remembered for later calls (a group of completions shares its
    reference, and validation repeats its references).

    Args:
        cache_size: How many texts to remember; the least recently used is forgotten first. 0 remembers none.

    Example:
        >>> from mrg.metrics.conditions import CONDITIONS, CLASSES
        >>> row = RulesLabeler()(["Small left effusion. No pneumothorax."])[0]
        >>> {name: CLASSES[label] for name, label in zip(CONDITIONS, row.tolist()) if label}
        {'Pneumothorax': 'negative', 'Pleural Effusion': 'positive'}
    """

    name = "rules"

    def __init__(self, cache_size: int = 65_536, convention: str = "chexbert") -> None:
        if convention not in CONVENTIONS:
            raise ValueError(f"Expected argument `convention` to be 'chexbert' or 'plain', but got {convention!r}.")
        if cache_size < 0:
            raise UserError(f"Expected argument `cache_size` to be at least 0, but got {cache_size}.")
        self.cache_size = cache_size
        self.convention = convention
        self._lexicon = Lexicon(convention)
        self._cache: dict[str, bytes] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports in English; empty ones are allowed.

        Returns:
            int64 (N, 14) as described in `Labeler`.

        Raises:
            TypeError: If something in `texts` is not a string; the message gives its index.
        """
        texts = texts if isinstance(texts, str) else list(texts)
        check_texts(texts)
        rows = {text: self._row(text) for text in dict.fromkeys(texts)}
        if not texts:
            return torch.zeros(0, NUM_CONDITIONS, dtype=torch.int64)
        flat = torch.frombuffer(bytearray(b"".join([rows[text] for text in texts])), dtype=torch.uint8)
        return flat.view(-1, NUM_CONDITIONS).long()

    def evidence(self, text: str) -> list[Evidence]:
        """Say which words of a report led to its labels, in reading order.

        Raises:
            TypeError: If `text` is not a string.
        """
        check_texts([text])
        return list(self._evidence(text))

    def _row(self, text: str) -> bytes:
        row = self._cache.pop(text, None)
        if row is None:
            row = self._label(text)
        if self.cache_size:
            self._cache[text] = row
            if len(self._cache) > self.cache_size:
                del self._cache[next(iter(self._cache))]
        return row

    def _label(self, text: str) -> bytes:
        row = [BLANK] * (OTHER + 1)
        words = self._lexicon.tokens(text).words
        for mention in Reader(words, self._lexicon).read(self._lexicon.find(words)):
            if _STRENGTH[mention.label] > _STRENGTH[row[mention.condition]]:
                row[mention.condition] = mention.label
        has_words = any(word[0].isalnum() for word in words)
        if has_words and not any(row[index] in (POSITIVE, UNCERTAIN) for index in _ABNORMAL):
            row[_NO_FINDING] = POSITIVE
        return bytes(row[:NUM_CONDITIONS])

    def _evidence(self, text: str) -> Iterator[Evidence]:
        tokens = self._lexicon.tokens(text)
        mentions = Reader(tokens.words, self._lexicon).read(self._lexicon.find(tokens.words))
        sentences = _sentences(tokens)
        for mention in sorted(mentions, key=lambda mention: mention.span):
            if mention.label == BLANK or mention.condition == OTHER:
                continue
            begin, stop = tokens.spans[mention.span[0]][0], tokens.spans[mention.span[1] - 1][1]
            start, end = sentences[mention.span[0]]
            cue = text[tokens.spans[mention.cue[0]][0] : tokens.spans[mention.cue[1] - 1][1]]
            yield Evidence(CONDITIONS[mention.condition], mention.label, start, end, cue, begin, stop)


def _sentences(tokens: Tokens) -> list[tuple[int, int]]:
    """For each token the first character of its sentence and one past the last; a line break belongs to none."""
    result: list[tuple[int, int]] = []
    first = 0
    for place, word in enumerate([*tokens.words, HARD]):
        if word in (".", "!", "?", HARD):
            stop = place + (word != HARD)
            if stop > first:
                result += [(tokens.spans[first][0], tokens.spans[stop - 1][1])] * (stop - first)
            result += [(0, 0)] * (place + 1 - stop)
            first = place + 1
    return result
