"""Credit by finding: by hand, exact sums, tokens by their characters, and a step of training."""

import pytest
import torch

from mrg.metrics import CONDITIONS, POSITIVE, RulesLabeler
from mrg.metrics.ce import ce_f1
from mrg.modules.rl.advantage import group_advantages
from mrg.modules.rl.credit import (
    check_credit,
    divisors,
    evidence_spans,
    finding_credit,
    label_values,
    spread,
    token_spans,
    token_values,
)
from mrg.modules.rl.reward import Reward
from mrg.modules.rl.settings import LossSettings
from tests.modules.rl.test_corpus_f1 import CARDIOMEGALY, EDEMA, FRACTURE, labels


class Characters:
    """A tokenizer with a token per character, and an end token."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) if i else "" if skip_special_tokens else "</s>" for i in ids)


class Bytes:
    """A tokenizer with a token per byte, so that a character may have several."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", "replace")


class Tidy(Characters):
    """A tokenizer that removes blanks before a stop."""

    def decode(self, ids, skip_special_tokens):
        return super().decode(ids, skip_special_tokens).replace("  .", ".")


def reward_of(**weights):
    return Reward(RulesLabeler(), **{"mccs_weight": 0.0, "format_weight": 0.0, "think": "absent", **weights})


def test_values_of_labels_by_hand():
    """F1 of two findings, one right, against two: 1/2; without the right one 0, without the wrong one 2/3."""
    target = labels({CARDIOMEGALY: POSITIVE, EDEMA: POSITIVE})
    preds = labels({CARDIOMEGALY: POSITIVE, FRACTURE: POSITIVE})
    values = label_values(reward_of(ce_f1_weight=0.5), preds, target)
    expected = [0.0] * 13
    expected[CARDIOMEGALY], expected[FRACTURE] = 0.5 * (1 / 2), 0.5 * (1 / 2 - 2 / 3)
    assert values[0].tolist() == pytest.approx(expected)


def test_values_are_changes_of_the_reward():
    generator = torch.Generator().manual_seed(0)
    preds, target = (torch.randint(0, 4, (20, 14), generator=generator) for _ in range(2))
    values = label_values(reward_of(ce_f1_weight=1.0), preds, target)
    for column in range(13):
        without = preds.clone()
        without[:, column] = 0
        for row in range(20):
            scores = [
                ce_f1(x[row : row + 1], target[row : row + 1], average="example", zero_division=1)
                for x in (preds, without)
            ]
            assert float(values[row, column]) == pytest.approx(float(scores[0] - scores[1]), abs=1e-12)
    assert (values[preds[:, :13] == 0] == 0).all()


def test_words_of_the_evidence():
    text = "<report>The heart is enlarged. No effusion or edema.</report>"
    found = evidence_spans(RulesLabeler(), text, "absent")
    words = {(CONDITIONS[column], text[start:stop]) for column, (start, stop) in found}
    assert ("Cardiomegaly", "heart") in words
    assert ("Cardiomegaly", "enlarged") in words
    assert {("Edema", "edema"), ("Edema", "No"), ("Pleural Effusion", "effusion"), ("Pleural Effusion", "No")} <= words
    assert evidence_spans(RulesLabeler(), "The heart is enlarged.", "absent") == []  # no report section
    thought = "<think>edema</think><report>No edema.</report>"
    assert {thought[a:b] for _, (a, b) in evidence_spans(RulesLabeler(), thought, "required")} == {"No", "edema"}
    assert min(a for _, (a, _) in evidence_spans(RulesLabeler(), thought, "required")) > thought.index("<report>")


def test_characters_of_tokens():
    assert token_spans(Characters(), [*map(ord, " ab"), 0]) == [(0, 0), (0, 1), (1, 2), (2, 2)]
    text = "né!"
    spans = token_spans(Bytes(), list(text.encode()))
    assert spans == [(0, 1), (1, 1), (1, 2), (2, 3)]  # the second byte completes the letter
    assert token_spans(Characters(), list(map(ord, "a\ufffdb"))) == [(0, 1), (1, 2), (2, 3)]  # no part of a character
    assert token_spans(Tidy(), list(b"a  .b")) == [(0, 1), (1, 2), (2, 3), (3, 3), (3, 3)]  # never backwards


def test_tokens_by_hand():
    """Five tokens; the second states a finding, the third two, the others none."""
    spans = [(0, 2), (2, 5), (5, 9), (9, 12), (12, 12)]
    values = torch.zeros(13, dtype=torch.float64)
    values[0], values[1] = 0.5, -0.25
    sums, covered = token_values(spans, [(0, (3, 7)), (1, (6, 8))], values)
    assert sums == [0, 0.5, 0.25, 0, 0]
    assert covered == [False, True, True, False, False]
    assert token_values([(0, 2), (2, 5)], [(0, (0, 2))], values) == ([0.5, 0], [True, False])  # begins where it ends
    mask = torch.ones(1, 6, dtype=torch.bool)
    mask[0, 5] = False
    padded = torch.tensor([[*sums, 9.0]]), torch.tensor([[*covered, True]])
    got = spread(torch.tensor([-1.0], dtype=torch.float64), *padded, mask)
    rest = (5 * -1.0 - 0.75) / 3
    assert got[0].tolist() == pytest.approx([rest, 0.5, 0.25, rest, rest, 0])
    everywhere = spread(torch.tensor([1.0]), torch.tensor([[2.0, 4.0]]), *torch.ones(2, 1, 2, dtype=torch.bool))
    assert everywhere[0].tolist() == [0.0, 2.0]  # 2 - 6 is shared by both


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_sums_over_tokens_are_unchanged(scale):
    reward = reward_of(ce_f1_weight=1.0, format_weight=0.25)
    target = ["Cardiomegaly. Edema."] * 4 + ["No edema."] * 4
    reports = ["Cardiomegaly.", "Cardiomegaly. Rib fracture.", "No edema.", "Clear lungs.", *["No edema."] * 4]
    texts = [f"<report>{report}</report>" for report in reports]
    texts[3] = "Clear lungs."
    rewards = reward(texts, target, [str(i) for i in range(8)])
    advantages = group_advantages(rewards.total, 4, scale)
    ids = [[*map(ord, text), 0] for text in texts]
    width = max(map(len, ids)) + 2
    credit, covered = finding_credit(reward, rewards, advantages, 4, texts, ids, width, Characters())
    lengths = torch.tensor([len(row) for row in ids])
    assert torch.allclose(credit.sum(1), lengths * advantages, atol=1e-9)
    assert (credit[4:] == 0).all()  # a dead group
    assert torch.equal(credit[3, : lengths[3]], advantages[3].expand(int(lengths[3])))  # no evidence
    assert not covered[3].any()
    # The wrong finding loses, the right one gains, whatever the whole report does.
    place = texts[1].index("fracture"), texts[1].index("Cardiomegaly")
    assert float(credit[1, place[0]]) < 0 < float(credit[1, place[1]])
    unit = float(divisors(rewards, advantages, 4)[0])
    assert float(credit[1, place[0]]) == pytest.approx((1 / 2 - 2 / 3) / unit)  # F1 of the report, and without it
    assert float(credit.abs()[:, : min(lengths)].max()) < 10


def test_a_label_is_worth_at_most_the_largest_advantage():
    """A group whose rewards hardly differ: dividing by their deviation would make a label worth thousands."""
    reward = reward_of(ce_f1_weight=1.0)
    texts = ["<report>Edema.</report>"] * 4
    rewards = reward(texts, ["Edema."] * 4, list("abcd"))
    rewards = rewards._replace(total=torch.tensor([1.0, 1.0, 1.0, 1.00001], dtype=torch.float64))
    advantages = group_advantages(rewards.total, 4, eps=0.0)
    ids = [[*map(ord, text)] for text in texts]
    credit, covered = finding_credit(reward, rewards, advantages, 4, texts, ids, len(ids[0]), Characters())
    assert float(credit[covered].abs().max()) == pytest.approx(float(advantages.abs().max()))


def test_divisors_of_each_scale():
    total = torch.tensor([1.0, 0.0, 0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    rewards = reward_of(ce_f1_weight=1.0)(["<report>Edema.</report>"] * 6, ["Edema."] * 6, list("abcdef"))
    rewards = rewards._replace(total=total)
    assert divisors(rewards, group_advantages(total, 2, "none"), 2).tolist() == [1, 1] + [torch.inf] * 4
    expected = 0.5**0.5 + 1e-4
    assert divisors(rewards, group_advantages(total, 2), 2)[:2].tolist() == pytest.approx([expected] * 2)


def test_what_credit_excludes():
    class Plain:
        name = "chexbert"

    with pytest.raises(
        ValueError, match=r"requires a labeler with evidence\(text\), such as RulesLabeler; chexbert has"
    ):
        check_credit(Plain(), reward_of(ce_f1_weight=1.0))
    with pytest.raises(ValueError, match="a part of the reward that depends on labels"):
        check_credit(RulesLabeler(), reward_of(format_weight=1.0))
    with pytest.raises(ValueError, match="cannot be combined with aggregation normalize_then_sum"):
        LossSettings(credit="finding", aggregation="normalize_then_sum")
    with pytest.raises(ValueError, match="cannot be combined with type gspo"):
        LossSettings(credit="finding", type="gspo")
