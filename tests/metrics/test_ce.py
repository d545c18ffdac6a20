import math

import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from mrg.metrics import CEF1, CONDITIONS, FIVE, THIRTEEN, ce_f1
from mrg.metrics.ce import average_score, condition_counts, confusion, report_counts


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
SKLEARN = {"f1": f1_score, "precision": precision_score, "recall": recall_score}


def random_labels(num=200, seed=0):
    return torch.randint(0, 4, (2, num, 14), generator=torch.Generator().manual_seed(seed)).unbind()


def findings(labels, uncertain):
    return torch.isin(labels, torch.tensor([1, 3] if uncertain == "positive" else [1])).numpy()


@pytest.mark.parametrize("setting", WORKED)
def test_worked_example(setting):
    got = [float(ce_f1(PREDS, TARGET, a, setting[1], setting[0])) for a in ("micro", "macro", "weighted", "example")]
    assert got == pytest.approx(WORKED[setting], abs=5e-5)


@pytest.mark.parametrize("score", SKLEARN)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "example", "none"])
@pytest.mark.parametrize("uncertain", ["positive", "negative"])
@pytest.mark.parametrize("conditions", [14, 13, 5, ["Fracture", "Edema"]])
def test_equal_to_scikit_learn_and_to_any_batch_split(average, uncertain, score, conditions):
    preds, target = random_labels()
    # Some conditions and reports have nothing to find, or nothing found.
    preds[:, 7], target[:, 4], preds[::5], target[::7] = 0, 2, 2, 0
    names = {14: CONDITIONS, 13: THIRTEEN, 5: FIVE}[conditions] if isinstance(conditions, int) else conditions
    columns = [CONDITIONS.index(c) for c in names]
    a, b = (findings(x, uncertain)[:, columns] for x in (preds, target))
    name = {"example": "samples", "none": None}.get(average, average)
    for zero_division in (0, 1):
        expected = SKLEARN[score](b, a, average=name, zero_division=zero_division)
        expected = torch.as_tensor(expected, dtype=torch.float64)
        options = {"score": score, "zero_division": zero_division}
        got = ce_f1(preds, target, average, conditions, uncertain, **options)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        metric = CEF1(average, conditions, uncertain, **options)
        for part in torch.randperm(200, generator=torch.Generator().manual_seed(0)).split(37):
            metric.update(preds[part], target[part])
        torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", SKLEARN)
@pytest.mark.parametrize("average", ["macro", "example"])
def test_skip_is_the_nan_of_scikit_learn(average, score):
    preds, target = random_labels()
    preds[:, 7], target[:, 7], preds[::5], target[::5] = 0, 2, 2, 0
    a, b = findings(preds, "positive"), findings(target, "positive")
    name = "samples" if average == "example" else average
    expected = SKLEARN[score](b, a, average=name, zero_division=math.nan)
    assert float(ce_f1(preds, target, average, 14, score=score, zero_division="skip")) == pytest.approx(expected)
    metric = CEF1(average, 14, score=score, zero_division="skip")
    metric.update(preds, target)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(float(ce_f1(preds, target, average, 14, score=score, zero_division="nan")))
    metric = CEF1(average, 14, score=score, zero_division="nan")
    metric.update(preds, target)
    assert math.isnan(float(metric.compute()))


def test_zero_division_by_hand():
    """Nothing to find and nothing found, in each average."""
    nothing = torch.zeros(3, 14, dtype=torch.long)
    for average in ("micro", "macro", "weighted", "example"):
        assert [float(ce_f1(nothing, nothing, average, zero_division=z)) for z in (0, 1)] == [0, 1]
        for option in ("nan", "skip"):
            assert math.isnan(float(ce_f1(nothing, nothing, average, zero_division=option)))


def test_uncertain_by_hand():
    """Edema in eight reports: every pair of stated, denied, uncertain that matters."""
    edema = CONDITIONS.index("Edema")
    #               pp un up pu uu un nu blank-u
    target_row = [1, 3, 3, 1, 3, 2, 2, 0]
    preds_row = [1, 2, 1, 3, 3, 1, 3, 3]
    target, preds = torch.zeros(2, 8, 14, dtype=torch.long).unbind()
    target[:, edema], preds[:, edema] = torch.tensor(target_row), torch.tensor(preds_row)
    expected = {"positive": (4, 3, 1), "negative": (1, 2, 1), "own": (2, 5, 3), "ignore": (2, 3, 0)}
    for uncertain, counts in expected.items():
        assert condition_counts(confusion(preds, target), uncertain)[:, edema].tolist() == list(counts)
        assert report_counts(preds, target, uncertain).sum(1)[:, edema].tolist() == list(counts)
        tp, fp, fn = counts
        got = ce_f1(preds, target, "micro", ["Edema"], uncertain)
        assert float(got) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_own_class_is_two_classes_per_condition():
    preds, target = random_labels()
    columns = [torch.cat([x == 1, x == 3], 1).numpy() for x in (target, preds)]
    expected = f1_score(*columns, average="micro")
    assert float(ce_f1(preds, target, "micro", 14, "own")) == pytest.approx(expected, abs=1e-12)


def test_counts_of_reports_sum_to_those_of_the_confusion():
    preds, target = random_labels()
    table = confusion(preds, target)
    assert table.shape == (14, 4, 4)
    assert int(table.sum()) == 200 * 14
    assert int(table[3, 1, 2]) == int(((target[:, 3] == 1) & (preds[:, 3] == 2)).sum())
    for uncertain in ("positive", "negative", "own", "ignore"):
        assert torch.equal(report_counts(preds, target, uncertain).sum(1), condition_counts(table, uncertain))


def test_average_score_skips_in_weighted_too():
    counts = torch.tensor([[1, 0, 0], [1, 0, 3], [0, 2, 0]])  # f1: 2/3, 0, 0; precision: 1/2, nan, 0
    assert float(average_score(counts, "weighted", "precision", "skip")) == pytest.approx(0.5)
    assert math.isnan(float(average_score(counts, "weighted", "precision", "nan")))
    assert float(average_score(counts, "weighted", "precision", 0)) == pytest.approx(0.5 / 3)


def test_scores_of_reports():
    metric = CEF1("example", zero_division=1)
    got = metric.scores(PREDS, TARGET)
    # Cardiomegaly and edema of three; nothing on either side; consolidation and devices, pneumonia missed, atelectasis
    # invented; an invented effusion.
    assert got.tolist() == pytest.approx([4 / 5, 1, 4 / 6, 0])
    assert float(got.mean()) == pytest.approx(float(ce_f1(PREDS, TARGET, "example", zero_division=1)))
    assert metric.update_count == 0
    with pytest.raises(ValueError, match="'example' for scores per report, but it is 'micro'"):
        CEF1().scores(PREDS, TARGET)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"average": "samples"},
            "`average` to be 'micro', 'macro', 'weighted', 'example' or 'none', but got 'samples'",
        ),
        ({"uncertain": "blank"}, "`uncertain` to be 'positive', 'negative', 'own' or 'ignore', but got 'blank'"),
        ({"score": "accuracy"}, "`score` to be 'f1', 'precision' or 'recall', but got 'accuracy'"),
        ({"zero_division": 0.5}, "`zero_division` to be 0, 1, 'nan' or 'skip', but got 0.5"),
        ({"conditions": 12}, "14, 13, 5 or a list of names, but got 12"),
        ({"conditions": ["Edema", "Oedema"]}, "but got 'Oedema'"),
        ({"conditions": "Edema"}, "a list of names, but got 'Edema'"),
        ({"conditions": []}, "different names, but got"),
        ({"conditions": ["Edema", "Edema"]}, "different names, but got"),
    ],
)
def test_bad_arguments(arguments, message):
    for call in (lambda: CEF1(**arguments), lambda: ce_f1(PREDS, TARGET, **arguments)):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
