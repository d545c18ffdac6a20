"""A rule-based labeler for English chest-radiograph reports: fast, deterministic, and able to show its evidence.

A text is brought into plain form (`layout.py`), phrases (`phrases.py`, `cues.py`) are looked up in it
(`lexicon.py`) and read in one pass with scopes of negation and uncertainty (`scopes.py`). There are two conventions:
`"chexbert"` follows the labels that CheXbert (Smit et al., 2020) gives to real reports, `"plain"` is the literal
reading. Both share these choices, which are those of the CheXpert labeler (Irvin et al., 2019) where nothing else is
said:

- Several mentions of one condition: positive > uncertain > negative.
- Conditions do not imply each other: "consolidation" does not set Lung Opacity. A calcified granuloma is no Lung
  Lesion.
- "Lungs are clear" leaves Lung Opacity and Consolidation blank: nothing named is denied.
- "Cardiomediastinal silhouette" is Enlarged Cardiomediastinum, not Cardiomegaly. A size that is normal or not enlarged
  is negative, one that is enlarged, large or prominent is positive, and so is a heart that "has increased".
- "Possible", "probable", "may represent", "suggesting", "versus", "A or B", "cannot be excluded" are uncertain.
  "Likely", "consistent with", "compatible with" and de-identified words (XXXX) leave a finding positive.
- Vascular congestion is an uncertain Edema, and fibrosis is Pleural Other.
- "Unchanged", "improved", "resolving" and "healed" findings are positive; "resolved", "cleared" and "removed" ones are
  negative; "no new" is negative (CheXpert: uncertain). "Effusion: none" is negative.
- "Evaluate for", "history of", "if there is concern for", "to exclude", "symptoms of", "sensitive in detecting" and
  "may not be demonstrated" state nothing, and sections such as Indication and Comparison are skipped.
- No Finding is 1 where the text has a word (a number alone is none) and nothing abnormal is positive or uncertain.

Where the conventions differ (`chexbert_phrases.py` has every phrase):

| phrase | `chexbert` | `plain` |
|---|---|---|
| degenerative change, granuloma, scoliosis, tortuous aorta, sternotomy, … | No Finding blank | no effect |
| heart or mediastinum "stable", "unchanged" | uncertain | blank |
| heart "is upper limits of normal", "borderline enlarged" | positive | negative, uncertain |
| "no infiltrate" | Consolidation negative | Lung Opacity negative |
| "no acute bony abnormality" | Fracture negative | blank |
| clear or sharp angles and pleural spaces; blunted angle | blank; blank | effusion negative; uncertain |
| nodular opacity | Lung Lesion | Lung Lesion and Lung Opacity |
| calcified nodule | blank | Lung Lesion |
| density; prominent vessels; thickened bronchi | blank | Lung Opacity; uncertain Edema; Lung Opacity |
| doubted scar | positive | uncertain |
| heart valve, joint prosthesis, fixation; de-identified port | blank | Support Devices |
| "cardiac contours are normal" | heart and mediastinum negative | heart negative |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mrg.errors import UserError
from mrg.metrics.conditions import BLANK, CONDITIONS, NUM_CONDITIONS, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.attributes import ATTRIBUTES, Finding, attributes, relevant
from mrg.metrics.labelers.layout import HARD
from mrg.metrics.labelers.lexicon import OTHER, Lexicon, Tokens
from mrg.metrics.labelers.scopes import Reader
from mrg.metrics.labels import Labeler, check_texts

_NO_FINDING = CONDITIONS.index("No Finding")
_ABNORMAL = [*(index for index, name in enumerate(CONDITIONS) if name not in ("Support Devices", "No Finding")), OTHER]
# Index = label class: the strongest statement about a condition wins.
_STRENGTH = (0, 3, 1, 2)
CONVENTIONS = ("chexbert", "plain")


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One statement about one condition.

    Args:
        condition: A name of `CONDITIONS`.
        label: POSITIVE, NEGATIVE or UNCERTAIN, as stated here.
        start: First character of the sentence.
        end: One past the last character of the sentence.
        cue: Words that determine the label: a negation, a hedge or a state such as "enlarged"; if the finding is
            asserted without any, the words that name it.
        mention_start: First character of the name of the finding or structure.
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

    Equal texts are labelled once per call, and rows are cached for later calls (a group of completions shares its
    reference, and validation repeats its references).

    Args:
        cache_size: Number of texts whose labels are cached; the least recently used is dropped first. 0 caches none.
        convention: `"chexbert"`, which agrees with CheXbert's labels, or `"plain"`, the literal reading; see the
            module. Results name the labeler `rules` or `rules-plain`.

    Raises:
        UserError: If `cache_size` is negative or `convention` unknown.

    Example:
        >>> from mrg.metrics.conditions import CONDITIONS, CLASSES
        >>> row = RulesLabeler()(["Small left effusion. No pneumothorax."])[0]
        >>> {name: CLASSES[label] for name, label in zip(CONDITIONS, row.tolist()) if label}
        {'Pneumothorax': 'negative', 'Pleural Effusion': 'positive'}
    """

    name = "rules"

    def __init__(self, cache_size: int = 65_536, convention: str = "chexbert") -> None:
        if convention not in CONVENTIONS:
            raise UserError(f"Expected argument `convention` to be 'chexbert' or 'plain', but got {convention!r}.")
        if cache_size < 0:
            raise UserError(f"Expected argument `cache_size` to be at least 0, but got {cache_size}.")
        self.cache_size = cache_size
        self.convention = convention
        if convention != "chexbert":
            self.name = f"rules-{convention}"
        self._lexicon = Lexicon(convention)
        self._cache: dict[str, bytes] = {}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Args:
            texts: N reports in English; empty ones are allowed.

        Returns:
            int64 (N, 14) as described in `Labeler`.

        Raises:
            UserTypeError: If something in `texts` is not a string; the message gives its index.
        """
        texts = texts if isinstance(texts, str) else list(texts)
        check_texts(texts)
        rows = {text: self._row(text) for text in dict.fromkeys(texts)}
        if not texts:
            return torch.zeros(0, NUM_CONDITIONS, dtype=torch.int64)
        flat = torch.frombuffer(bytearray(b"".join([rows[text] for text in texts])), dtype=torch.uint8)
        return flat.view(-1, NUM_CONDITIONS).long()

    def evidence(self, text: str) -> list[Evidence]:
        """The words of a report that determine its labels, in reading order.

        Raises:
            UserTypeError: If `text` is not a string.
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

    def findings(self, text: str) -> list[Finding]:
        """The findings of one report with side, place, severity and change; see `attributes.py`.

        Args:
            text: A report.

        Returns:
            Positive and uncertain findings, and those that have resolved, in reading order.

        Raises:
            UserTypeError: If `text` is not a string.

        Example:
            >>> finding = RulesLabeler().findings("Small left pleural effusion, unchanged.")[0]
            >>> finding.condition, finding.side, finding.severity, finding.change
            ('Pleural Effusion', 'left', 'small', 'unchanged')
        """
        check_texts([text])
        tokens = self._lexicon.tokens(text)
        mentions = Reader(tokens.words, self._lexicon).read(self._lexicon.find(tokens.words))
        read = attributes(tokens.words, mentions)
        result = []
        for mention in sorted(mentions, key=lambda mention: mention.span):
            own = relevant(mention.label, read.get(mention.span, {}))
            if own is None or mention.label == BLANK or mention.condition == OTHER:
                continue
            said = sorted({span for _, span in own.values()})
            side, place, severity, change = (own[kind][0] if kind in own else None for kind in ATTRIBUTES)
            start, end = tokens.spans[mention.span[0]][0], tokens.spans[mention.span[1] - 1][1]
            words = tuple(text[tokens.spans[a][0] : tokens.spans[b - 1][1]] for a, b in said)
            name = CONDITIONS[mention.condition]
            result.append(Finding(name, mention.label, side, place, severity, change, start, end, words))
        return result

    def _label(self, text: str) -> bytes:
        row = [BLANK] * (OTHER + 1)
        words = self._lexicon.word_list(text)
        for mention in Reader(words, self._lexicon).read(self._lexicon.find(words)):
            if _STRENGTH[mention.label] > _STRENGTH[row[mention.condition]]:
                row[mention.condition] = mention.label
        has_words = any(letter.isalpha() for word in words for letter in word)
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
    """For each token the first character of its sentence and one past the last; a line break belongs to no sentence."""
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
