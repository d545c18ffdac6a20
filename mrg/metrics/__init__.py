"""Clinical metrics of radiology reports: usable alone, on labels or on strings with a labeler."""

from mrg.metrics.ce import CEF1, CONVENTIONS, ce_f1
from mrg.metrics.conditions import BLANK, CONDITIONS, FIVE, NEGATIVE, POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.mccs import MCCS, ccs, mccs

__all__ = [
    "BLANK",
    "CEF1",
    "CONDITIONS",
    "CONVENTIONS",
    "FIVE",
    "MCCS",
    "NEGATIVE",
    "POSITIVE",
    "THIRTEEN",
    "UNCERTAIN",
    "RulesLabeler",
    "ccs",
    "ce_f1",
    "format_score",
    "mccs",
    "parse_completion",
]
