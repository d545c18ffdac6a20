import pytest
import torch

from mrg.metrics import RulesLabeler
from mrg.modules.rl.advantage import group_advantages
from mrg.modules.rl.reward import Reward, RewardError, Rewards, WeightedScorer, join_rewards, replace_rewards

TARGET = "The heart is enlarged. No pneumothorax."


def think(report, thinking="x"):
    return f"<think>{thinking}</think><report>{report}</report>"


def test_weights_and_parts_by_hand():
    reward = Reward(RulesLabeler(), margin=0.5)
    texts = [
        think(TARGET),  # equal findings
        think("The heart is enlarged."),  # cosine 1 / sqrt 2
        think("The heart is normal in size. No pneumothorax."),  # cosine 0
        f"<report>{TARGET}</report>",  # right findings, no thinking
        TARGET,  # no report section: not labelled at all
        "",
    ]
    rewards, parts, *_ = reward(texts, [TARGET] * 6, list("abcdef"))
    similar = (2**-0.5 - 0.5) / 0.5
    assert parts["mccs"].tolist() == pytest.approx([1, similar, 0, 1, 0, 0])
    assert parts["format"].tolist() == [1, 1, 1, 0, 0, 0]
    # Right: cardiomegaly. The third states none of it; what is ruled out counts for nothing.
    assert parts["ce_f1"].tolist() == [1, 1, 0, 1, 0, 0]
    assert rewards.tolist() == pytest.approx([1, 0.75 * similar + 0.25, 0.25, 0.75, 0, 0])


def test_nothing_written_earns_nothing_even_where_nothing_was_to_be_found():
    rewards, *_ = Reward(RulesLabeler(), think="absent")(
        ["", "<report> </report>"], ["The lungs are clear."] * 2, ["a", "b"]
    )
    assert rewards.tolist() == [0, 0]


def test_rewards_do_not_depend_on_batch_or_order():
    reward = Reward(RulesLabeler(), margin=0.0, think="absent")
    texts = [f"<report>{t}</report>" for t in ("Cardiomegaly.", "Small effusion. No edema.", "No effusion.", "Clear.")]
    target = ["Cardiomegaly. No effusion.", "Effusion.", "No effusion. No edema.", "No pneumothorax."]
    together, *_ = reward(texts, target, list("abcd"))
    alone = [float(reward([t], [g], ["a"])[0]) for t, g in zip(texts, target, strict=True)]
    assert together.tolist() == alone
    assert reward(texts[::-1], target[::-1], list("dcba"))[0].tolist() == alone[::-1]


def test_failure_stops_with_the_study_and_is_never_zero():
    def broken(texts):
        if any("odd" in text for text in texts):
            raise OSError("cannot read this")
        return torch.zeros(len(texts), 14, dtype=torch.int64)

    with pytest.raises(RewardError, match="failed on study b: OSError: cannot read this "):
        Reward(broken)([think("x"), think("odd"), think("x")], ["x"] * 3, ["a", "b", "c"])

    def crowded(texts):
        if len(texts) > 2:
            raise OSError("too many")
        return torch.zeros(len(texts), 14, dtype=torch.int64)

    place = r"OSError: too many \(.*test_reward.py, line \d+, in crowded\)$"
    with pytest.raises(RewardError, match=r"study a to b \(each alone can be labeled\): " + place):
        Reward(crowded)([think("x")] * 2, ["x"] * 2, ["a", "b"])

    def nothing(texts):
        return torch.zeros(len(texts), 14, dtype=torch.int64)

    reward = Reward(nothing, mccs_weight=float("nan"))
    with pytest.raises(RewardError, match="reward of study a is nan"):
        reward([think("x")], ["x"], ["a"])


def length(preds, target):
    """Words of a report; None for one of a single word; fails where it says so."""
    if any("odd" in text for text in preds):
        raise OSError("cannot read this")
    return [None if text == "Clear." else float("nan") if "broken" in text else len(text.split()) for text in preds]


def paying(weight=0.1, **weights):
    part = WeightedScorer(f"{__name__}:length", weight)
    return Reward(RulesLabeler(), **{"mccs_weight": 0, "format_weight": 0, **weights}, think="absent", scorers=[part])


def report(text):
    return f"<report>{text}</report>"


def test_a_scorer_is_paid_by_its_weight_and_left_out_where_it_does_not_apply():
    texts = [report("No edema seen."), report("Clear."), report(""), "no section at all"]
    rewards = paying(format_weight=0.5)(texts, [TARGET] * 4, list("abcd"))
    assert rewards.parts["length"].tolist() == [3, 0, 0, 0]
    assert rewards.present["length"].tolist() == [True, False, True, True]
    assert rewards.total.tolist() == pytest.approx([0.8, 0.5, 0, 0])  # an empty report has no format either
    assert rewards.scored.all()


def test_a_completion_without_any_reward_gets_no_advantage():
    texts = [report(text) for text in ("No edema seen.", "Clear.", "No edema.", "Clear.", "Clear.", "No edema.")]
    rewards = paying()(texts, [TARGET] * 6, list("aaabbb"))
    assert rewards.scored.tolist() == [True, False, True, False, False, True]
    advantages = group_advantages(rewards.total, 3, "none", present=rewards.scored)
    # The first group has two rewards, 0.3 and 0.2; the second one only, which has nothing to be compared with.
    assert advantages.tolist() == pytest.approx([0.05, 0, -0.05, 0, 0, 0])


@pytest.mark.parametrize(
    ("text", "reason"), [("odd", "OSError: cannot read this"), ("broken", "its value is nan, not a finite number")]
)
def test_a_scorer_that_fails_stops_with_the_study(text, reason):
    with pytest.raises(RewardError, match=rf"Reward `length` failed on completion 1 \(study b\): {reason}"):
        paying()([report("Clear."), report(text), report("Edema.")], [TARGET] * 3, list("abc"))


def test_ce_f1_pays_a_rightly_normal_report_in_full():
    reward = Reward(RulesLabeler(), mccs_weight=0, ce_f1_weight=1, format_weight=0, think="absent")
    normal, found = "No pneumothorax. No edema.", "Cardiomegaly. Small effusion."
    texts = [report(t) for t in (normal, "Cardiomegaly.", normal, found, "Cardiomegaly. Edema.")]
    rewards = reward(texts, [normal, normal, found, found, found], list("abcde"))
    assert rewards.total.tolist() == [1, 0, 0, 1, 0.5]  # the last: one of two right, one of two missed


def test_wording_can_be_paid():
    pytest.importorskip("pycocoevalcap")
    parts = [WeightedScorer("mrg.metrics.nlg:bleu", 0.75), WeightedScorer("mrg.metrics.nlg:rouge_l", 0.25, "rouge")]
    reward = Reward(RulesLabeler(), 0, 0, think="absent", scorers=parts)
    rewards = reward([report(TARGET), report("no pleural fluid")], [TARGET] * 2, ["a", "b"])
    assert rewards.total.tolist() == pytest.approx([1, 0], abs=1e-6)
    assert set(rewards.parts) == {"mccs", "ce_f1", "format", "bleu", "rouge"}


def test_wrong_parts():
    with pytest.raises(ValueError, match="a weight other than 0 in the reward"):
        Reward(RulesLabeler(), mccs_weight=0, format_weight=0)
    twice = [WeightedScorer(f"{__name__}:length")] * 2
    with pytest.raises(ValueError, match="different names, but got 'length' twice"):
        Reward(RulesLabeler(), scorers=twice)
    with pytest.raises(ValueError, match="but got 'bleu'"):
        Reward(RulesLabeler(), scorers=[WeightedScorer("bleu")])


def too_long(preds, target):
    """-1 for a report of more than three words; does not apply without a reference."""
    return [None if not t else -float(len(p.split()) > 3) for p, t in zip(preds, target, strict=True)]


def test_a_negative_part_pays_for_silence_and_is_named_once(caplog):
    scorer = WeightedScorer(f"{__name__}:too_long", weight=0.5)
    reward = Reward(RulesLabeler(), scorers=[scorer])
    ids, short, long = list("abcd"), think("No edema."), think("No edema and no effusion.")
    reward([short, "", think(""), long], [TARGET] * 3 + [""], ids)  # nothing negative was scored
    assert "negative" not in caplog.text
    silent, spoken = reward(["", long, short, think("")], [TARGET] * 4, ids).parts["too_long"][:2].tolist()
    assert silent > spoken
    (line,) = [message for message in caplog.messages if "negative" in message]
    assert line.startswith("The reward's part 'too_long' is negative (-0.5 with its weight) for 1 of 2 reports, ")
    assert "\n" not in line
    reward([long], [TARGET], ["a"])
    assert caplog.text.count("is negative") == 1


@pytest.mark.parametrize(("weight", "said"), [(-0.1, True), (0.1, False), (0.0, False)])
def test_a_positive_part_with_a_negative_weight_is_a_penalty_too(caplog, weight, said):
    reward = Reward(RulesLabeler(), scorers=[WeightedScorer(f"{__name__}:length", weight=weight)])
    reward([think("No edema.")], [TARGET], ["a"])
    assert ("rewards silence" in caplog.text) is said


def some_rewards(first, present=None, scored=None):
    """Two rewards whose numbers start at `first`."""
    numbers = torch.tensor([first, first + 1], dtype=torch.float64)
    rows = torch.tensor([[first], [first + 1]]).expand(2, 14)
    return Rewards(numbers, {"part": -numbers}, (rows, rows + 100), present or {}, scored)


def test_rewards_are_joined_and_replaced_row_by_row():
    """A part is present, and a reward exists, where nothing else is said."""
    flags = torch.tensor([True, False])
    joined = join_rewards([some_rewards(0), some_rewards(2, {"part": flags}, ~flags)])
    assert joined.total.tolist() == [0, 1, 2, 3]
    assert joined.parts["part"].tolist() == [0, -1, -2, -3]
    assert [labels[:, 0].tolist() for labels in joined.labels] == [[0, 1, 2, 3], [100, 101, 102, 103]]
    assert joined.present["part"].tolist() == [True, True, True, False]
    assert joined.scored.tolist() == [True, True, False, True]

    replaced = replace_rewards(joined, some_rewards(7), torch.tensor([3, 0]))
    assert replaced.total.tolist() == [8, 1, 2, 7]
    assert replaced.parts["part"].tolist() == [-8, -1, -2, -7]
    assert [labels[:, 0].tolist() for labels in replaced.labels] == [[8, 1, 2, 7], [108, 101, 102, 107]]
    assert replaced.present["part"].tolist() == [True, True, True, True]
    assert replaced.scored.tolist() == [True, True, False, True]
    taken = replaced.take(torch.tensor([2]))
    assert (taken.total.tolist(), taken.scored.tolist(), taken.present["part"].tolist()) == ([2], [False], [True])
    assert some_rewards(0).take(torch.tensor([1])).scored is None
