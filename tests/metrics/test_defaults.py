"""Defaults of what may be called from outside: numbers of earlier results depend on them."""

import importlib
import inspect

import pytest

RESAMPLED = {"margin": 0.5, "num_resamples": 1000, "seed": 0, "min_cases": 10}
CE = {"average": "micro", "conditions": 13, "uncertain": "positive", "score": "f1", "zero_division": 0}
MARGIN = {"margin": 0.5, "uncertain": 1.0, "empty": "match", "conditions": 13}
NETWORK = {"batch_tokens": 4096, "cache_size": 65_536}
DEFAULTS = {
    "ce:ce_f1": CE, "ce:CEF1": CE, "ce:ratio": {"score": "f1", "zero_division": 0},
    "mccs:ccs": {name: MARGIN[name] for name in ("uncertain", "empty", "conditions")},
    "mccs:mccs": {**MARGIN, "reduction": "mean"}, "mccs:MCCS": MARGIN,
    "finding_f1:FindingF1": {"attributes": ("side",), "average": "micro"},
    "finding_f1:AttributeAccuracy": {"attribute": "side"},
    "tables:informedness": {"conditions": 13, "uncertain": "positive"},
    "tables:macro_informedness": {"min_cases": 10, "conditions": 13, "uncertain": "positive"},
    "tables:columns": {"gap": 2},
    "resampling:ReportSums": {"margin": 0.5, "min_cases": 10}, "resampling:ReportSums.of": {"min_cases": 10},
    "resampling:ReportSums.scores": {"resampled": False}, "resampling:bootstrap": {"num_trials": 1000, "seed": 0},
    "resampling:percentile_interval": {"level": 0.95},
    "resampling:randomization_p": {"num_trials": 10_000, "seed": 0},
    "evaluation:evaluate_systems": {**RESAMPLED, "differences": ()},
    "evaluation:format_span": {"scale": 100, "digits": 1, "sign": ""},
    "compare:compare_systems": {"margin": 0.5, "num_trials": 10_000, "seed": 0, "min_cases": 10},
    "compare:format_comparison": {"num_changed": 10},
    "leaderboard:leaderboard": {**RESAMPLED, "rank_by": "CE-F1 micro-13+"},
    "constants:BestConstants.of": {"margin": 0.5}, "consensus:agreement": {"margin": 0.5},
    "consensus:choose_samples": {"margin": 0.5},
    "calibration:reliability": {"num_bins": 10}, "calibration:calibration_error": {"num_bins": 10},
    "calibration:Calibration.fit": {"method": "platt"}, "calibration:cross_fitted": {"num_folds": 5},
    "uncertainty:compare_choices": {"num_resamples": 1000, "seed": 0},
    "readers:reader_scores": {"margin": 0.5}, "readers:correlations": {"num_trials": 1000, "seed": 0},
    "readers:read_pairs": {"significant": False},
    "format:parse_completion": {"think": "required"}, "format:format_score": {"think": "required"},
    "trl:as_reward": {"target": "target"}, "trl:format_reward": {"think": "required", "name": "format"},
    "scorer:ReportScore": {"higher_is_better": True},
    "nlg:nlg_scores": {"normalization": "none", "meteor": True}, "nlg:need_nlg": {"normalization": "none"},
    "arguments:ReportingLabeler": {"block": 10_000, "seconds": 5.0}, "predictions:some": {"most": 10},
    "remarks:wrapped": {"width": 112}, "texts:join": {"by_row": False},
    "labelers.rules:RulesLabeler": {"cache_size": 65_536, "convention": "chexbert"},
    "labelers.chexbert:CheXbertLabeler": {
        "checkpoint": "StanfordAIMI/RRG_scorers", "tokenizer": "bert-base-uncased", "dtype": "float32",
        "batch_tokens": 1024, "cache_size": 65_536,
    },
    "learned.bertscore:BERTScore": {"part": "f1", **NETWORK},
    "learned.radgraph:RadGraphF1": {"level": "partial", **NETWORK},
    "learned.ratescore:RaTEScore": {"weights": "long", "sentences": "medspacy", **NETWORK},
    "learned.radcliq:RadCliQ": {"version": "v1", "reward": False, **NETWORK},
    "scores.group:Row": {"percent": True, "higher_is_better": True}, "scores.group:mean": {"column": 0},
    "scores.group:micro_f1": {"first": 0}, "scores.kept:KeptValues.fill": {"block": 0},
    "scores.kept:KeptLabels": {"block": 500},
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    module, _, path = name.partition(":")
    found = importlib.import_module(f"mrg.metrics.{module}")
    for part in path.split("."):
        found = getattr(found, part)
    given = inspect.signature(found).parameters.values()
    assert {one.name: one.default for one in given if one.default not in (one.empty, None)} == DEFAULTS[name]


def test_defaults_of_a_judge():
    from mrg.metrics.judge import COUNTS, PROMPT, Judge, matched_share

    parameters = inspect.signature(Judge).parameters.values()
    assert {one.name: one.default for one in parameters if one.default is not one.empty} == {
        "score": matched_share, "counts": COUNTS, "prompt": PROMPT, "cache": "", "attempts": 3, "timeout": 120.0,
        "concurrency": 8, "max_tokens": 200, "key_variable": "OPENAI_API_KEY",
    }  # fmt: skip
    assert list(COUNTS) == ["matched", "significant", "insignificant"]
