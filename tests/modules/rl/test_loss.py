import math

import pytest
import torch

from mrg.modules.rl.advantage import group_advantages
from mrg.modules.rl.loss import LOSS_TYPES, check_loss_options, clipped_surrogate, grpo_loss, sequence_ratio
from tests.modules.rl.conftest import MAX_TOKENS


def rows(seed=0, n=6, c=5):
    g = torch.Generator().manual_seed(seed)
    logps = (-torch.rand(n, c, generator=g, dtype=torch.float64)).requires_grad_()
    old, ref = (-torch.rand(n, c, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(c) < torch.tensor([5, 3, 1, 4, 5, 2])[:, None]
    return logps, old, ref, torch.randn(n, generator=g, dtype=torch.float64), mask


def loss_of(loss_type, logps, old, ref, advantages, mask, num_completions=6, num_tokens=20, **options):
    """Loss and stats of some rows of a step, by default of 6 completions and 20 tokens."""
    return grpo_loss(
        logps,
        old,
        ref,
        advantages,
        mask,
        num_completions,
        loss_type=loss_type,
        num_tokens=num_tokens,
        max_tokens=MAX_TOKENS,
        **options,
    )


def gradient(loss, logps):
    return torch.autograd.grad(loss, logps)[0]


# -- by hand ----------------------------------------------------------------------------------------------------------

# Two completions, of two tokens with ratios 2 and .5, and of one token with ratio 1.5; advantages 1 and -1.
LOGPS = torch.tensor([[0.5, 0.25], [0.6, 0.9]], dtype=torch.float64).log()
OLD = torch.tensor([[0.25, 0.5], [0.4, 0.1]], dtype=torch.float64).log()
MASK = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", ((-1.2 - 0.5) / 2 + 1.5) / 2),
        ("bnpo", (-1.2 - 0.5 + 1.5) / 3),
        ("dapo", (-1.2 - 0.5 + 1.5) / 3),
        ("dr_grpo", (-1.2 - 0.5 + 1.5) / (2 * MAX_TOKENS)),
        ("gspo", (-1.0 + 1.5) / 2),  # the geometric mean of 2 and .5 is 1
        ("cispo", (-1.2 * math.log(0.5) - 0.8 * math.log(0.25) + 1.2 * math.log(0.6)) / 3),
        # 4 sigmoid(1), 4 sigmoid(-.5), and with the other temperature 4 / 1.05 sigmoid(1.05 * .5)
        ("sapo", ((-4 / (1 + math.exp(-1)) - 4 / (1 + math.exp(0.5))) / 2 + 4 / 1.05 / (1 + math.exp(-0.525))) / 2),
    ],
)
def test_each_loss_by_hand(loss_type, expected):
    loss, _ = loss_of(loss_type, LOGPS, OLD, None, torch.tensor([1.0, -1.0]), MASK, 2, 3, kl_coef=0.0)
    assert float(loss) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("estimator", "kl"), [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.5 - math.log(0.5) - 1)]
)
@pytest.mark.parametrize(("correction", "factor"), [(False, 1.0), (True, 1.2)])
def test_kl_by_hand(estimator, kl, correction, factor):
    logps, old, ref = (torch.tensor([p], dtype=torch.float64).log() for p in ([0.5, 0.6], [0.25, 0.5], [0.5, 0.3]))
    loss, stats = grpo_loss(
        logps,
        old,
        ref,
        torch.tensor([1.0]),
        torch.ones(1, 2, dtype=torch.bool),
        1,
        kl_coef=0.1,
        kl_estimator=estimator,
        kl_ratio_correction=correction,
    )
    # ratios 2 and 1.2, both limited to 1.2; the first token has no KL
    assert float(loss) == pytest.approx((-1.2 - 1.2 + 0.1 * factor * kl) / 2)
    assert float(stats["kl"]) == pytest.approx(factor * kl / 2)


def test_asymmetric_and_dual_clip_by_hand():
    ratio = torch.tensor([0.5, 1.25, 4.0, 0.5, 1.25, 4.0])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    got = clipped_surrogate(ratio, advantages, 0.2, 0.28)
    assert got.tolist() == pytest.approx([-0.5, -1.25, -1.28, 0.8, 1.25, 4.0])
    assert clipped_surrogate(ratio, advantages, 0.2, 0.28, 3.0).tolist() == pytest.approx([*got[:5].tolist(), 3.0])


def test_stats_are_sums_over_completions_of_token_means():
    old = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    ratio = torch.tensor([[2.0, 0.5, 1.0, 9.0], [2.0, 0.5, 4.0, 0.5], [9.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True] * 4, [False] * 4])
    advantages = torch.tensor([1.0, -1.0, 1.0])

    def stats(loss_type, dual_clip=None):
        return loss_of(loss_type, ratio.log(), old, None, advantages, mask, kl_coef=0.0, dual_clip=dual_clip)[1]

    got = stats("grpo", 3.0)
    assert {name: float(value) for name, value in got.items() if name != "entropy_proxy"} == pytest.approx(
        {"clipped_high": 1 / 3, "clipped_low": 2 / 4, "clipped_dual": 1 / 4, "clipped": 1 / 3 + 3 / 4}
    )
    assert float(got["entropy_proxy"]) == pytest.approx(-math.log(2.0) / 4)  # the rows' products are 1 and 2
    assert float(stats("cispo")["clipped"]) == pytest.approx(2 / 3 + 4 / 4)
    assert float(stats("gspo")["clipped"]) == 0  # sequence ratios 1 and 2 ** .25
    assert not any(value.requires_grad for value in got.values())


# -- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [4, 0, 5, 2, 1, 3]])
@pytest.mark.parametrize("split", [1, 2, 4, 5])
def test_neither_split_nor_order_nor_padding_changes_anything(loss_type, order, split):
    logps, old, ref, advantages, mask = rows()
    options = {"dual_clip": None if loss_type in ("cispo", "sapo") else 1.5, "kl_ratio_correction": True}
    whole, stats = loss_of(loss_type, logps, old, ref, advantages, mask, **options)
    shares = []
    for start in range(0, 6, split):
        part = order[start : start + split]
        longest = int(mask[part].sum(1).max())
        tensors = [tensor[part, :longest] for tensor in (logps, old, ref)]
        shares.append(loss_of(loss_type, *tensors, advantages[part], mask[part, :longest], **options))
    total = sum(share for share, _ in shares)
    assert torch.allclose(total, whole, atol=1e-14)
    assert torch.allclose(gradient(total, logps), gradient(whole, logps), atol=1e-15)
    for name, value in stats.items():
        assert float(sum(share[name] for _, share in shares)) == pytest.approx(float(value), abs=1e-14)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_ratio_one_gives_the_reinforce_gradient(loss_type):
    logps, _, _, advantages, mask = rows()
    loss, stats = loss_of(loss_type, logps, logps.detach(), None, advantages, mask, kl_coef=0.0)
    weight = {"grpo": 1 / mask.sum(1, keepdim=True) / 6, "dr_grpo": 1 / (6 * MAX_TOKENS)}
    weight["gspo"] = weight["sapo"] = weight["grpo"]
    assert torch.allclose(
        gradient(loss, logps), -advantages[:, None] * mask * weight.get(loss_type, 1 / 20), atol=1e-15
    )
    assert float(stats["clipped"]) == 0


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_old_policy_and_the_reference_get_no_gradient(loss_type):
    logps, _, _, advantages, mask = rows()
    with_itself, _ = loss_of(loss_type, logps, logps, logps, advantages, mask, kl_estimator="k1")
    copy = logps.detach()
    with_a_copy, _ = loss_of(loss_type, logps, copy, copy, advantages, mask, kl_estimator="k1")
    assert torch.equal(gradient(with_itself, logps), gradient(with_a_copy, logps))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("garbage", [-torch.inf, torch.inf, torch.nan])
def test_masked_tokens_count_for_nothing_whatever_they_hold(loss_type, garbage):
    logps, old, ref, advantages, mask = rows()
    mask[2] = False  # a row without a token
    dirty = [tensor.detach().masked_fill(~mask, garbage) for tensor in (logps, old, ref)]
    dirty[0].requires_grad_()
    loss, stats = loss_of(loss_type, *dirty, advantages, mask, kl_ratio_correction=True)
    clean, _ = loss_of(loss_type, logps, old, ref, advantages, mask, kl_ratio_correction=True)
    got = gradient(loss, dirty[0])
    assert torch.equal(loss, clean)
    assert torch.equal(got, gradient(clean, logps))
    assert got[~mask].abs().max() == 0
    assert all(torch.isfinite(value) for value in stats.values())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 4)])
def test_no_tokens_at_all_give_zero(loss_type, shape):
    logps = torch.zeros(shape, requires_grad=True)
    mask = torch.zeros(shape, dtype=torch.bool)
    loss, stats = loss_of(loss_type, logps, logps, logps, torch.ones(shape[0]), mask, num_tokens=0)
    assert loss.item() == 0
    assert gradient(loss, logps).abs().sum() == 0
    assert all(float(value) == 0 for value in stats.values())


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_constant_rewards_give_exactly_no_gradient(loss_type, scale):
    logps, old, _, _, mask = rows()
    advantages = group_advantages(torch.full((6,), 0.35), 3, scale)
    loss, _ = loss_of(loss_type, logps, old, None, advantages, mask, kl_coef=0.0)
    assert loss.item() == 0
    assert gradient(loss, logps).abs().max() == 0
    # Nor does k3 pull where policy and reference agree.
    loss, _ = loss_of(loss_type, logps, old, logps.detach(), advantages, mask, kl_ratio_correction=True)
    assert gradient(loss, logps).abs().max() == 0


def test_dual_clip_is_the_published_maximum_and_bounds_the_loss():
    ratio = torch.logspace(-3, 3, 101, dtype=torch.float64)[:, None]
    advantages = torch.tensor([[-2.0, -0.1, 0.0, 0.1, 2.0]], dtype=torch.float64)
    got = clipped_surrogate(ratio, advantages, 0.2, 0.28, 1.5)
    plain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    expected = -torch.where(advantages < 0, torch.maximum(plain, 1.5 * advantages), plain)
    assert torch.equal(got, expected)
    assert (got <= 1.5 * advantages.abs()).all()


def test_a_sequence_has_one_ratio():
    logps, old, ref, advantages, mask = rows()
    ratio = sequence_ratio(logps, old, mask)
    assert ratio.shape == (6, 1)
    expected = [gap[keep].mean().exp().item() for gap, keep in zip(logps - old, mask, strict=True)]
    assert ratio[:, 0].tolist() == pytest.approx(expected)
    # Its gradient is one number per completion as well.
    loss, _ = loss_of("gspo", logps, old, ref, advantages, mask, kl_coef=0.0, clip_high=9.0, clip_low=1.0)
    for row, keep in zip(gradient(loss, logps), mask, strict=True):
        assert row[keep].unique().numel() == 1


def test_the_kl_correction_is_per_token_even_for_sequence_ratios():
    stats = [loss_of(loss_type, *rows(), kl_ratio_correction=True)[1] for loss_type in LOSS_TYPES]
    assert len({value["kl"].item() for value in stats}) == 1
    assert stats[0]["kl"] != loss_of("grpo", *rows())[1]["kl"]


def test_cispo_keeps_the_gradient_that_clipping_takes():
    logps = torch.log(torch.tensor([[0.9]], dtype=torch.float64)).requires_grad_()
    old = torch.log(torch.tensor([[0.3]], dtype=torch.float64))
    arguments = (logps, old, None, torch.ones(1), torch.ones(1, 1, dtype=torch.bool), 1, 1)
    assert float(gradient(loss_of("dapo", *arguments, kl_coef=0.0)[0], logps)) == 0
    assert float(gradient(loss_of("cispo", *arguments, kl_coef=0.0)[0], logps)) == pytest.approx(-1.2)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_truncated_completions_keep_their_place_but_not_their_tokens(loss_type):
    logps, old, ref, advantages, mask = rows()
    truncated = torch.tensor([True, False, False, False, True, False])
    kept = mask & ~truncated[:, None]
    assert kept.sum(1).tolist() == [0, 3, 1, 4, 0, 2]
    loss, _ = loss_of(loss_type, logps, old, ref, advantages, kept, 6, int(kept.sum()))
    rest = [tensor[~truncated] for tensor in (logps, old, ref, advantages, mask)]
    expected, _ = loss_of(loss_type, *rest, 6, 10)  # still 6 completions, but 10 of the 20 tokens
    assert torch.allclose(loss, expected, atol=1e-14)
    assert gradient(loss, logps)[truncated].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "`loss_type` to be one of grpo, .*, but got 'ppo'"),
        ({"kl_estimator": "k4"}, "`kl_estimator` to be 'k1', 'k2' or 'k3', but got 'k4'"),
        ({"clip_low": -0.1}, "`clip_low` to be at least 0, but got -0.1"),
        ({"clip_high": -0.1}, "`clip_high` to be at least 0, but got -0.1"),
        ({"dual_clip": 1.1}, "`dual_clip` to be at least 1 \\+ clip_high = 1.2, but got 1.1"),
        ({"dual_clip": 3.0, "loss_type": "cispo", "num_tokens": 20}, "`dual_clip` to be None for 'cispo'"),
        ({"dual_clip": 3.0, "loss_type": "sapo"}, "`dual_clip` to be None for 'sapo'"),
        ({"loss_type": "dapo"}, "`num_tokens` to be at least 0 for 'dapo', but got None"),
        ({"loss_type": "dr_grpo"}, "`max_tokens` to be at least 1 for 'dr_grpo', but got None"),
        ({"num_completions": 0}, "`num_completions` to be above 0, but got 0"),
        ({"ref_logps": None}, "`ref_logps` to be given"),
    ],
)
def test_bad_arguments(options, message):
    names = ("logps", "old_logps", "ref_logps", "advantages", "mask")
    arguments = {**dict(zip(names, rows(), strict=True)), "num_completions": 6, **options}
    with pytest.raises(ValueError, match=message) as error:
        grpo_loss(**arguments)
    assert "\n" not in str(error.value)


def test_options_are_named_where_they_are_set():
    check_loss_options(dual_clip=1.3)  # above 1 + clip_high as it is by default
    with pytest.raises(ValueError, match=r"Expected model\.init_args\.loss\.type to be one of grpo"):
        check_loss_options("ppo", where="model.init_args.loss.")
