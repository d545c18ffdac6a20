"""Clinical metrics of radiology reports: usable alone, on labels or on strings with a labeler."""

from mrg.metrics.ce import CEF1, ce_f1
from mrg.metrics.conditions import (
    BLANK,
    CONDITIONS,
    CONVENTIONS,
    FAMILIES,
    FIVE,
    NEGATIVE,
    POSITIVE,
    THIRTEEN,
    UNCERTAIN,
    convention,
)
from mrg.metrics.finding_f1 import AttributeAccuracy, ChangeF1, FindingF1
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.labels import Labeler
from mrg.metrics.mccs import MCCS, ccs, mccs
from mrg.metrics.nlg import NLGScores, nlg_scores
from mrg.metrics.scorer import ReportScore, load_scorer
from mrg.metrics.tables import CETable, ce_table
from mrg.metrics.trl import as_reward, format_reward

__all__ = [
    "BLANK",
    "CEF1",
    "CONDITIONS",
    "CONVENTIONS",
    "FAMILIES",
    "FIVE",
    "MCCS",
    "NEGATIVE",
    "POSITIVE",
    "THIRTEEN",
    "UNCERTAIN",
    "AttributeAccuracy",
    "CETable",
    "ChangeF1",
    "CheXbertLabeler",
    "FindingF1",
    "Labeler",
    "NLGScores",
    "ReportScore",
    "RulesLabeler",
    "as_reward",
    "ccs",
    "ce_f1",
    "ce_table",
    "convention",
    "format_reward",
    "format_score",
    "load_scorer",
    "mccs",
    "nlg_scores",
    "parse_completion",
]
