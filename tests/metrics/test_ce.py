import pytest
import torch
from sklearn.metrics import f1_score

from mrg.metrics import CEF1, CONDITIONS, FIVE, MCCS, THIRTEEN, ccs, ce_f1, mccs


def report(**findings):
    row = [0] * 14
    for name, sign in findings.items():
        row[[c.lower().replace(" ", "_") for c in CONDITIONS].index(name)] = " pnu".index(sign)
    return row


TARGET = torch.tensor(
    [
        report(cardiomegaly="p", edema="u", pleural_effusion="p", pneumothorax="n"),
        report(no_finding="p"),
        report(pneumonia="u", consolidation="p", support_devices="p"),
        report(pleural_effusion="n", pneumothorax="n"),
    ]
)
PREDS = torch.tensor(
    [
        report(cardiomegaly="p", edema="p", pleural_effusion="n"),
        report(no_finding="p", pneumothorax="n"),
        report(consolidation="u", atelectasis="p", support_devices="p"),
        report(pleural_effusion="p", pneumothorax="n"),
    ]
)
WORKED = {
    ("negative", 14): (0.5455, 0.2143, 0.6, 0.5),
    ("negative", 13): (0.4444, 0.1538, 0.5, 0.25),
    ("negative", 5): (0.2857, 0.2, 0.3333, 0.125),
    ("positive", 14): (0.7143, 0.3571, 0.7143, 0.6167),
    ("positive", 13): (0.6667, 0.3077, 0.6667, 0.3667),
    ("positive", 5): (0.6667, 0.6, 0.75, 0.3667),
}


@pytest.mark.parametrize("setting", WORKED)
def test_worked_example(setting):
    conditions = {14: CONDITIONS, 13: THIRTEEN, 5: FIVE}[setting[1]]
    got = [float(ce_f1(PREDS, TARGET, a, conditions, setting[0])) for a in ("micro", "macro", "weighted", "example")]
    assert got == pytest.approx(WORKED[setting], abs=5e-5)


def test_worked_cosines():
    assert ccs(PREDS, TARGET, empty="zero").tolist() == pytest.approx([0.2887, 0.0, 0.6667, 0.0], abs=5e-5)


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "example"])
@pytest.mark.parametrize("uncertain", ["positive", "negative"])
def test_equal_to_scikit_learn_and_to_any_batch_split(average, uncertain):
    g = torch.Generator().manual_seed(0)
    preds, target = torch.randint(0, 4, (2, 200, 14), generator=g)
    present = [1, 3] if uncertain == "positive" else [1]
    a, b = (torch.isin(x, torch.tensor(present)).numpy() for x in (preds, target))
    expected = f1_score(b, a, average={"example": "samples"}.get(average, average), zero_division=0)
    assert float(ce_f1(preds, target, average, CONDITIONS, uncertain)) == pytest.approx(expected, abs=1e-12)
    metric = CEF1(average, CONDITIONS, uncertain)
    for part in torch.randperm(200, generator=g).split(37):
        metric.update(preds[part], target[part])
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


def test_mccs_of_denied_findings():
    """Denying p findings while matching k negatives: (k - p) / (k + p)."""
    for p, k, expected in ((1, 4, 0.6), (1, 6, 5 / 7), (2, 6, 0.5)):
        target = torch.tensor([[1] * p + [2] * k + [0] * (14 - p - k)])
        preds = torch.tensor([[2] * (p + k) + [0] * (14 - p - k)])
        assert float(ccs(preds, target)) == pytest.approx(expected, abs=1e-15)
        assert float(mccs(preds, target, 0.3)) == pytest.approx((expected - 0.3) / 0.7, abs=1e-15)


def test_mccs_properties():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (300, 14), generator=g)
    other = torch.randint(0, 4, (300, 14), generator=g)
    assert (ccs(labels, labels) == 1).all()
    assert torch.equal(ccs(labels, other), ccs(other, labels))
    flipped = labels.clone()
    flipped[labels == 1], flipped[labels == 2], flipped[labels == 3] = 2, 1, 2
    assert torch.equal(ccs(flipped, other), -ccs(labels, other))
    zero = torch.zeros(1, 14, dtype=torch.long)
    assert [float(ccs(zero, zero, empty=e)) for e in ("match", "zero")] == [1.0, 0.0]
    assert float(ccs(zero, labels[:1])) == 0
    metric = MCCS(margin=0.3)
    for part in range(0, 300, 70):
        metric.update(labels[part : part + 70], other[part : part + 70])
    assert float(metric.compute()) == pytest.approx(float(mccs(labels, other, 0.3)), abs=1e-14)


def test_bad_input():
    with pytest.raises(ValueError, match="same length, but got 4 and 3"):
        CEF1().update(PREDS, TARGET[:3])
    with pytest.raises(ValueError, match="labeler"):
        MCCS().update(["a"], ["b"])
    with pytest.raises(ValueError, match=r"0\.\.3, but got 0\.\.4"):
        CEF1().update(PREDS + 3 * (PREDS == 1), TARGET)
    with pytest.raises(ValueError, match=r"in \[0, 1\), but got 1"):
        mccs(PREDS, TARGET, 1)
