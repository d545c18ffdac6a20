"""Options of the loss and the reward in training: what they change, and what they leave as it is."""

import pytest
import torch

from mrg.metrics import RulesLabeler
from mrg.modules.rl.entropy import EntropySettings
from mrg.modules.rl.reward import Rewards, join_rewards
from mrg.modules.rollout.sampling import Rollout
from tests.modules.test_grpo import module_on, saved, weights  # noqa: F401
from tests.modules.test_grpo_options import Shortness, fitted


def equal(one, other):
    return all(torch.equal(w, weights(other)[name]) for name, w in weights(one).items())


def test_all_tokens_are_uncertain_tokens_if_all_are_wanted(saved, studies):  # noqa: F811
    """The most uncertain 100 % are all; 40 % of them make another step."""
    plain, _ = fitted(saved, studies[:4], Shortness(), kl_coef=0.0)
    every, _ = fitted(saved, studies[:4], Shortness(), kl_coef=0.0, entropy=EntropySettings(top_quantile=1.0))
    some, _ = fitted(saved, studies[:4], Shortness(), kl_coef=0.0, entropy=EntropySettings(top_quantile=0.4))
    assert equal(plain, every)
    assert not equal(plain, some)


@pytest.mark.parametrize("settings", [{"micro_batch_tokens": 1}, {}])
def test_the_bonus_raises_the_entropy_without_any_advantage(saved, studies, settings):  # noqa: F811
    """Dead groups have no policy loss; the bonus alone moves the policy, the same in any micro-batches."""

    class Constant(Shortness):
        def __call__(self, texts, target, study_id):
            nothing = torch.zeros(len(texts), 14, dtype=torch.long)
            return Rewards(torch.full((len(texts),), 0.35, dtype=torch.float64), {}, (nothing, nothing))

    options = {"kl_coef": 0.0, "learning_rate": 1e-2, "patience": 99, **settings}
    _, before = fitted(saved, studies[:4], Constant(), entropy=EntropySettings(coef=1.0), **options)
    _, after = fitted(saved, studies[:4], Constant(), steps=6, entropy=EntropySettings(coef=1.0), **options)
    assert float(after.callback_metrics["train/entropy"]) > float(before.callback_metrics["train/entropy"])


def test_the_weight_of_the_bonus_is_logged_and_saved(saved, studies):  # noqa: F811
    entropy = EntropySettings(coef=0.01, target=100.0, delta=0.01)
    module, lightning = fitted(saved, studies[:4], Shortness(), steps=3, entropy=entropy)
    assert float(lightning.callback_metrics["train/entropy_coef"]) == pytest.approx(0.04)
    checkpoint = {"state_dict": {}}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["entropy_bonus"]["coef"] == pytest.approx(0.04)
    assert 0 < checkpoint["entropy_bonus"]["entropy"] < 100


def test_completions_of_an_older_policy_are_left_out(saved, studies):  # noqa: F811
    settings = {"learning_rate": 3e-2, "kl_coef": 0.0, "num_iterations": 6, "off_policy_limit": 1e-3}
    _, lightning = fitted(saved, studies[:4], Shortness(), steps=6, **settings)
    assert 0 < float(lightning.callback_metrics["train/off_policy"]) < 1


def test_long_completions_are_paid_less(saved, studies):  # noqa: F811
    module, _ = module_on(saved, studies, overlong_weight=0.5, overlong_cache=4, format_weight=0.5)
    _, lightning = fitted(saved, studies[:4], module.reward, overlong_weight=0.5, overlong_cache=4, format_weight=0.5)
    assert 0 <= float(lightning.callback_metrics["reward/overlong"]) <= 1
    with pytest.raises(ValueError, match=r"overlong_cache to be at most max_new_tokens \(10\), but got 11"):
        module_on(saved, studies, overlong_weight=0.5, overlong_cache=11)


def test_credit_without_evidence_is_that_of_the_completion(saved, studies):  # noqa: F811
    """A random policy states nothing, so that a step with credit by finding is the step without."""
    module, _ = module_on(saved, studies, ce_f1_weight=1.0, credit="finding")
    texts = ["<report>The heart is enlarged. No effusion.</report>", "xyz"] * 2
    rewards = module.reward(texts, ["Cardiomegaly."] * 4, list("abcd"))
    assert isinstance(module.labeler, RulesLabeler)
    tokenizer = module.policy.processor.tokenizer
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    decoded = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    rollout = Rollout(padded, mask, torch.zeros(mask.shape), decoded, torch.zeros(4, dtype=torch.bool))
    advantages = module.advantages(rewards)
    credit = module.credit(rollout, rewards, advantages)
    share, num_tokens = module.evidence_share, int(mask.sum())
    assert 0 < share < 1
    twice = Rollout(*(torch.cat([x, x]) for x in (padded, mask, rollout.old_logps)), decoded * 2, torch.zeros(8) > 0)
    dead = join_rewards([rewards, rewards.take(torch.zeros(4, dtype=torch.long))])  # nobody looks for evidence there
    assert module.credit(twice, dead, module.advantages(dead)).sum(1).tolist()[4:] == [0] * 4
    assert module.evidence_share == pytest.approx(share)
    assert int(share * num_tokens + 0.5) == pytest.approx(share * num_tokens)
    assert credit.shape == mask.shape
    assert torch.allclose(credit.sum(1), mask.sum(1) * advantages, atol=1e-6)
    assert torch.allclose(credit[1][mask[1]], advantages[1].expand(len(ids[1])))
    plain, _ = fitted(saved, studies[:4], module.reward, ce_f1_weight=1.0)
    spread, lightning = fitted(saved, studies[:4], module.reward, ce_f1_weight=1.0, credit="finding")
    assert equal(plain, spread)
    assert float(lightning.callback_metrics["train/evidence"]) == 0
