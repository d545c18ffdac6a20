"""What rewards pay to reports that ignore the image: by hand on four studies, and for custom scorers."""

import pytest

from mrg.datamodules.study import Study
from mrg.metrics import CONDITIONS, POSITIVE, UNCERTAIN, RulesLabeler
from mrg.metrics.conditions import THIRTEEN
from mrg.modules.rl.audit import (
    ALL_POSITIVE,
    FINDINGS,
    HEDGED,
    LOOKS,
    OPACITY,
    audit,
    best_constant,
    cheapest,
    format_audit,
    warn_of_exploits,
)
from mrg.modules.rl.audit import verdict as verdict_of
from mrg.modules.rl.corpus_f1 import CorpusF1
from mrg.modules.rl.reward import Reward, WeightedScorer

REPORTS = ["No edema.", "No edema.", "Edema.", "There is a lung opacity."]
IDS = list("abcd")


def paid(reward, **options):
    return {row.name: row for row in audit(reward, REPORTS, IDS, **options)}


def length(preds, target):
    return [len(text) / 100 for text in preds]


def silence(preds, target):
    return [None if "opacity" in text else 1.0 - bool(text) for text in target]


def half(preds, target):
    return [None if "opacity" in text else 0.5 for text in target]


def test_the_texts_state_what_they_should():
    rows = RulesLabeler()([ALL_POSITIVE, HEDGED, OPACITY])
    assert list(FINDINGS) == list(THIRTEEN)
    assert rows[0, :13].tolist() == [POSITIVE] * 13
    assert rows[1, :13].tolist() == [UNCERTAIN] * 13
    assert [name for name, value in zip(CONDITIONS, rows[2].tolist(), strict=True) if value] == ["Lung Opacity"]


def test_mccs_by_hand():
    rows = paid(Reward(RulesLabeler(), 0.8, 0.2, margin=0.0, think="absent"))
    assert rows["no report"].reward == 0
    assert rows["best constant"].text == "No edema."
    assert rows["best constant"].parts["mccs"] == pytest.approx(2 / 4)
    assert rows["constant opacity"].parts["mccs"] == pytest.approx(1 / 4)
    cosine = 13**-0.5  # of 13 findings with the one that is right, on two studies
    assert rows["all positive"].parts["mccs"] == pytest.approx(2 * cosine / 4)
    assert rows["hedged"].parts["mccs"] == rows["all positive"].parts["mccs"]  # uncertain counts as positive
    assert rows["copied"].parts["mccs"] == pytest.approx(1 / 4)  # the study before: right for the second alone
    assert (rows["perfect"].reward, rows["perfect"].of_perfect) == (1, 1)
    lowest = 0.2 + 0.8 * cosine / 2
    assert rows["all positive"].of_perfect == 0
    assert rows["best constant"].of_perfect == pytest.approx((0.4 + 0.2 - lowest) / (1 - lowest))
    assert rows["no report"].of_perfect == pytest.approx(-lowest / (1 - lowest))
    chosen = paid(Reward(RulesLabeler(), 0.8, 0.2, margin=0.0, think="absent"), copied=REPORTS)
    assert chosen["copied"].reward == 1


def test_the_cheapest_exploit_and_what_is_said_of_it():
    rows = list(paid(Reward(RulesLabeler(), 0.75, 0.0, margin=0.0, think="absent")).values())
    assert cheapest(rows).name == "best constant"
    said = verdict_of(rows)
    assert said[0] == 'Cheapest exploit: best constant ("No edema."), at 42 % of the perfect report.'
    assert "favors not looking" in said[1]
    assert len(said) == 2
    table = format_audit(rows, {"mccs": 0.75, "format": 0.0}).splitlines()
    assert "best constant" in table[3]
    assert table[0].split() == ["report", "of", "perfect", "reward", "mccs"]
    assert verdict_of(rows, quote=False)[0] == "Cheapest exploit: best constant, at 42 % of the perfect report."


def test_a_reward_above_the_constant_pays_it_less():
    plain = paid(Reward(RulesLabeler(), 1.0, 0.0, margin=0.0, think="absent"))
    above = paid(Reward(RulesLabeler(), 0.0, 0.0, margin=0.0, think="absent", above_constant_weight=1.0))
    odds = 0.15 / 0.85
    assert above["perfect"].reward == pytest.approx((2 * odds + 2) / 4)
    # "No edema." is the best constant of MCCS, and is paid odds / 2; one that states a finding is now paid more.
    assert plain["best constant"].text == "No edema."
    assert above["best constant"].text in ("Edema.", "There is a lung opacity.")
    assert above["best constant"].reward == pytest.approx(1 / 4)
    assert above["best constant"].of_perfect < plain["best constant"].of_perfect


def test_the_best_constant_of_another_reward():
    settings = {"corpus_f1_weight": 1.0, "corpus_f1": CorpusF1(source="fixed", start=0.2), "think": "absent"}
    assert best_constant(Reward(RulesLabeler(), 0.0, 0.0, **settings), REPORTS) in (
        "Edema.",
        "There is a lung opacity.",
    )
    # Without a part that depends on labels, the most frequent report.
    assert best_constant(Reward(RulesLabeler(), 0.0, 1.0, think="absent"), REPORTS) == "No edema."


def test_custom_scorers():
    own = [WeightedScorer(f"{__name__}:length")]
    rows = paid(Reward(RulesLabeler(), 0.0, 0.0, think="absent", scorers=own))
    assert cheapest(list(rows.values())).name == "all positive"  # the longest
    assert rows["all positive"].of_perfect > 1
    own = [WeightedScorer(f"{__name__}:silence", weight=-1.0)]
    rows = paid(Reward(RulesLabeler(), 0.0, 0.0, think="absent", scorers=own))
    assert rows["perfect"].reward == 0  # over the three studies to which it applies
    own = [WeightedScorer(f"{__name__}:half")]
    rows = paid(Reward(RulesLabeler(), 0.0, 0.0, think="absent", scorers=own))
    assert rows["perfect"].reward == 0.5
    said = verdict_of([row for row in rows.values() if row.name in ("no report", *LOOKS)])
    assert said == [
        "Cheapest exploit: no report, at 0 % of the perfect report.",
        "Writing nothing is paid most: shift the parts of the reward so that none is negative.",
    ]


def test_of_how_many_studies_fit_audits_the_reward():
    studies = [Study(str(i), (), report) for i, report in enumerate(REPORTS * 10)]
    for scorers, most in (([], 40), ([WeightedScorer(f"{__name__}:length")], 20)):  # of more than 32, every second
        read = []

        def labeler(texts, read=read):
            read.append(len(texts))
            return RulesLabeler()(texts)

        warn_of_exploits(Reward(labeler, 1.0, 0.0, margin=0.0, think="absent", scorers=scorers), studies)
        assert read[0] == most  # the references, to find the best constant


def test_one_report_is_too_few():
    with pytest.raises(ValueError, match="at least two training reports to audit the reward with, but got 1"):
        audit(Reward(RulesLabeler(), think="absent"), REPORTS[:1], IDS[:1])


def test_fit_warns_of_a_cheap_exploit(caplog):
    studies = [Study(str(i), (), report) for i, report in enumerate(REPORTS * 6)]
    with caplog.at_level("WARNING", "mrg"):
        warn_of_exploits(Reward(RulesLabeler(), 1.0, 0.0, margin=0.0, think="absent"), studies)
    assert "Cheapest exploit: best constant" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "mrg"):
        warn_of_exploits(Reward(RulesLabeler(), 1.0, 0.0, margin=0.0, think="absent"), studies[:8])
        # Thirteen findings, each as frequent as any other: no constant is worth much.
        studies = [Study(str(i), (), f"There is {words}.") for i, words in enumerate([*FINDINGS.values()] * 2)]
        warn_of_exploits(Reward(RulesLabeler(), 0.0, 0.0, think="absent", positives_weight=1.0), studies)
    assert not caplog.text
