import pytest
import torch

from mrg.metrics import RulesLabeler
from mrg.modules.reward import Reward, RewardError

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
    rewards, parts, _ = reward(texts, [TARGET] * 6, list("abcdef"))
    similar = (2**-0.5 - 0.5) / 0.5
    assert parts["mccs"].tolist() == pytest.approx([1, similar, 0, 1, 0, 0])
    assert parts["format"].tolist() == [1, 1, 1, 0, 0, 0]
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

    with pytest.raises(RewardError, match="failed on study b: cannot read this"):
        Reward(broken)([think("x"), think("odd"), think("x")], ["x"] * 3, ["a", "b", "c"])

    def crowded(texts):
        if len(texts) > 2:
            raise OSError("too many")
        return torch.zeros(len(texts), 14, dtype=torch.int64)

    with pytest.raises(RewardError, match=r"study a to b \(each alone can be labelled\): too many"):
        Reward(crowded)([think("x")] * 2, ["x"] * 2, ["a", "b"])

    def nothing(texts):
        return torch.zeros(len(texts), 14, dtype=torch.int64)

    reward = Reward(nothing, mccs_weight=float("nan"))
    with pytest.raises(RewardError, match="reward of study a is nan"):
        reward([think("x")], ["x"], ["a"])
