import pytest
import torch

from mrg.errors import UserError
from mrg.metrics.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.consensus import CHOICES, agreement, best_sample, choose_samples, finding_shares, match_findings
from mrg.metrics.mccs import mccs


def rows(*reports):
    """(1, N, 14) labels; each report is a dict of conditions and classes."""
    labels = torch.zeros(1, len(reports), 14, dtype=torch.int64)
    for i, report in enumerate(reports):
        for name, value in report.items():
            labels[0, i, CONDITIONS.index(name)] = value
    return labels


EDEMA, BOTH = {"Edema": POSITIVE}, {"Edema": POSITIVE, "Pneumonia": POSITIVE}
SAMPLES = rows(EDEMA, BOTH, {"Fracture": POSITIVE})


def test_agreement_by_hand():
    """F1 of edema alone and of both is 2/3; the fracture shares nothing. MCCS: cosine sqrt(1/2), margin 1/2."""
    assert agreement(SAMPLES, "ce_f1")[0].tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    similarity = (0.5**0.5 - 0.5) / 0.5 / 2
    assert agreement(SAMPLES, "mccs")[0].tolist() == pytest.approx([similarity, similarity, 0])
    # Classes that differ: edema alone and both, 1; edema and fracture, 2; both and fracture, 3.
    assert agreement(SAMPLES, "medoid")[0].tolist() == pytest.approx([(13 + 12) / 28, (13 + 11) / 28, (12 + 11) / 28])


def test_agreement_is_the_mean_over_the_other_samples():
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (3, 5, 14))
    labels[..., 13] = labels[..., 13] % 2
    scores = agreement(labels, "mccs", margin=0.2)
    for study in range(3):
        for own in range(5):
            others = [i for i in range(5) if i != own]
            one = labels[study, own].expand(4, 14)
            expected = mccs(one, labels[study, others], margin=0.2)
            assert float(scores[study, own]) == pytest.approx(float(expected))


def test_an_empty_report_agrees_with_nothing():
    labels, written = rows({}, {}, EDEMA), torch.tensor([[False, True, True]])
    assert agreement(labels, "ce_f1", written=written).tolist() == [[0, 0, 0]]
    assert agreement(labels, "ce_f1").tolist() == [[0.5, 0.5, 0]]
    logps = torch.tensor([[-1.0, -3.0, -2.0]])
    assert choose_samples(labels, logps, "likelihood", written=written).tolist() == [2]


def test_equal_scores_are_ordered_by_likelihood():
    assert choose_samples(SAMPLES, torch.tensor([[-5.0, -4.0, -1.0]]), "ce_f1").tolist() == [1]
    assert choose_samples(SAMPLES, torch.tensor([[-4.0, -5.0, -1.0]]), "ce_f1").tolist() == [0]
    assert choose_samples(SAMPLES, torch.tensor([[-4.0, -5.0, -1.0]]), "likelihood").tolist() == [2]
    assert best_sample(torch.tensor([[0.3, 0.1 + 0.2]]), torch.tensor([[-1.0, -2.0]])).tolist() == [0]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_order_of_the_samples_has_no_effect(choice):
    torch.manual_seed(1)
    labels, logps = torch.randint(0, 2, (4, 6, 14)), -torch.rand(4, 6)
    order = torch.randperm(6)
    chosen = choose_samples(labels, logps, choice)
    permuted = choose_samples(labels[:, order], logps[:, order], choice)
    assert [order[i].item() for i in permuted] == chosen.tolist()


def test_shares_count_uncertain_findings():
    labels = rows(EDEMA, {"Edema": UNCERTAIN}, {"Edema": NEGATIVE}, BOTH)
    shares = dict(zip(CONDITIONS, finding_shares(labels)[0].tolist(), strict=False))
    assert (shares["Edema"], shares["Pneumonia"], shares["Fracture"]) == (0.75, 0.25, 0)


def test_the_sample_that_matches_the_wanted_findings_best():
    wanted = torch.zeros(1, 13, dtype=torch.bool)
    wanted[0, [CONDITIONS.index("Edema"), CONDITIONS.index("Pneumonia")]] = True
    logps = torch.tensor([[-1.0, -9.0, -1.0]])
    assert match_findings(SAMPLES, logps, wanted).tolist() == [1]
    assert match_findings(SAMPLES, logps, wanted, torch.tensor([[True, False, True]])).tolist() == [0]


def test_one_sample_has_nothing_to_agree_with():
    with pytest.raises(UserError, match="at least 2 samples per study to compare, but got 1"):
        agreement(SAMPLES[:, :1], "mccs")
    with pytest.raises(UserError, match="'mccs', 'ce_f1' or 'medoid', but got 'best'"):
        agreement(SAMPLES, "best")
