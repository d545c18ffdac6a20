"""CEF1 and MCCS as torchmetrics objects: what they hold, and what happens between update and compute."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from mrg.metrics import CEF1, CONDITIONS, FIVE, MCCS, AttributeAccuracy, ChangeF1, FindingF1, RulesLabeler, ce_f1, mccs

PREDS = ["Cardiomegaly. Left effusion.", "No effusion.", "The lungs are clear.", "Possible pneumonia.", ""]
TARGET = ["Cardiomegaly. No effusion.", "No effusion.", "Left rib fracture.", "Pneumonia. No edema.", "Edema."]
METRICS = [
    CEF1,
    partial(CEF1, "macro", CONDITIONS, "negative"),
    partial(CEF1, "weighted", FIVE),
    partial(CEF1, "example"),
    partial(CEF1, "none"),
    MCCS,
    partial(MCCS, 0.0, uncertain=0.5, empty="zero"),
]

METRICS_OF_TEXTS = [FindingF1, partial(FindingF1, average="example"), partial(AttributeAccuracy, "side"), ChangeF1]


def random_labels(num, seed=0):
    return torch.randint(0, 4, (2, num, 14), generator=torch.Generator().manual_seed(seed)).unbind()


class NetworkLabeler(torch.nn.Module):
    """Writes the number of letters of a text into its row; a network, so that it could be taken for a submodule."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.weight = torch.nn.Parameter(torch.ones(14))
        self.register_buffer("offset", torch.zeros(14))
        self.eval()

    def forward(self, texts):
        lengths = torch.tensor([[len(text) % 4] for text in texts], dtype=torch.float32)
        return self.dropout(lengths * self.weight + self.offset).long()


def test_import_is_light():
    """Nothing but torch and torchmetrics, which itself imports transformers where it is installed."""
    code = """
import sys, torch, torchmetrics
before = set(sys.modules)
from mrg.metrics import CEF1, MCCS
new = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(sorted(new), "lightning" in sys.modules, "pytorch_lightning" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['mrg'] False False"


@pytest.mark.parametrize("make", METRICS)
def test_strings_with_a_labeler_equal_their_labels(make):
    labeler = RulesLabeler()
    of_strings, of_labels, mixed = make(labeler=labeler), make(), make(labeler=labeler)
    of_strings.update(PREDS, TARGET)
    of_labels.update(labeler(PREDS), labeler(TARGET))
    mixed.update(PREDS, labeler(TARGET))
    torch.testing.assert_close(of_strings.compute(), of_labels.compute(), rtol=0, atol=0)
    torch.testing.assert_close(mixed.compute(), of_labels.compute(), rtol=0, atol=0)


def test_strings_by_hand():
    """Per report (tp, fp, fn): (1, 1, 0), no finding on either side, (0, 0, 1), (1, 0, 0), (0, 0, 1)."""
    ce, margin = CEF1(labeler=RulesLabeler()), MCCS(0.0, labeler=RulesLabeler())
    ce.update(PREDS, TARGET)
    margin.update(PREDS, TARGET)
    assert float(ce.compute()) == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    # Cosines: (1 - 1) / 2, 1, one vector empty, 1 / sqrt(2), one vector empty.
    assert float(margin.compute()) == pytest.approx((0 + 1 + 0 + 0.5**0.5 + 0) / 5)


def test_scores_of_each_report_by_hand():
    """The parts of a reward: from strings, and from labels that were made once for both."""
    labeler = RulesLabeler()
    ce, margin = CEF1(average="example", zero_division=1, labeler=labeler), MCCS(0.0, labeler=labeler)
    assert ce.scores(PREDS, TARGET).tolist() == pytest.approx([2 / 3, 1, 0, 1, 0])
    assert margin.scores(PREDS, TARGET).tolist() == pytest.approx([0, 1, 0, 0.5**0.5, 0])
    labels = labeler(PREDS), labeler(TARGET)
    assert CEF1(average="example", zero_division=1).scores(*labels).tolist() == ce.scores(PREDS, TARGET).tolist()
    assert MCCS(0.0).scores(*labels).tolist() == margin.scores(PREDS, TARGET).tolist()
    assert ce.update_count == margin.update_count == 0


def test_strings_without_a_labeler_and_one_string():
    for metric in (CEF1(), MCCS()):
        with pytest.raises(ValueError, match="labeler"):
            metric.update(PREDS, TARGET)
    with pytest.raises(TypeError, match="put it in a list"):
        CEF1(labeler=RulesLabeler()).update("Edema.", "Edema.")


@pytest.mark.parametrize("make", METRICS)
def test_a_labeler_is_not_a_submodule(make):
    labeler = NetworkLabeler()
    metric = make(labeler=labeler)
    assert list(metric.parameters()) == list(metric.buffers()) == list(metric.children()) == []
    metric.persistent(True)
    assert not [key for key in metric.state_dict() if "labeler" in key or "weight" in key or "offset" in key]
    metric.train()
    assert not labeler.training
    assert not labeler.dropout.training

    metric.update(PREDS, TARGET)
    expected = metric.compute()
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        torch.testing.assert_close(copy.compute(), expected, rtol=0, atol=0)
        copy.update(TARGET, TARGET)
        assert int(copy.update_count) == 2
    assert metric.update_count == 1
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("make", METRICS)
def test_forward_counts_once(make):
    preds, target = random_labels(30)
    forward, update, alone = make(), make(), make()
    for start in (0, 10, 20):
        part = slice(start, start + 10)
        value = forward(preds[part], target[part])
        alone.reset()
        alone.update(preds[part], target[part])
        torch.testing.assert_close(value, alone.compute())
    update.update(preds, target)
    torch.testing.assert_close(forward.compute(), update.compute())


@pytest.mark.parametrize("make", METRICS)
def test_batches_and_order_do_not_matter(make):
    preds, target = random_labels(101)
    whole = make()
    whole.update(preds, target)
    expected = whole.compute()
    assert expected.dtype == torch.float64
    order = torch.randperm(101, generator=torch.Generator().manual_seed(1))
    for size in (1, 7, 100):
        parts = make()
        for index in order.split(size):
            parts.update(preds[index], target[index])
        parts.update(preds[:0], target[:0])
        torch.testing.assert_close(parts.compute(), expected, rtol=0, atol=1e-14)
    whole.reset()
    whole.update(preds[:3], target[:3])
    fresh = make()
    fresh.update(preds[:3], target[:3])
    torch.testing.assert_close(whole.compute(), fresh.compute(), rtol=0, atol=0)


@pytest.mark.parametrize("make", METRICS)
def test_streams_equal_the_functions(make):
    preds, target = random_labels(50)
    metric = make()
    metric.update(preds, target)
    if isinstance(metric, MCCS):
        expected = mccs(preds, target, metric.margin, metric.uncertain, metric.empty)
    else:
        expected = ce_f1(preds, target, metric.average, metric.conditions, metric.uncertain)
    torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=1e-14)


def work(rank, shares, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    preds, target = random_labels(25)
    values = []
    for share in shares:
        metrics = [make() for make in METRICS]
        for index in share[rank]:
            for metric in metrics:
                metric.update(preds[index], target[index])
        of_texts = [make() for make in METRICS_OF_TEXTS]
        for index in share[rank]:
            for metric in of_texts:
                metric.update([PREDS[i % 5] for i in index.tolist()], [TARGET[i % 5] for i in index.tolist()])
        values.append([metric.compute() for metric in (*metrics, *of_texts)])
    torch.save(values, f"{results}{rank}")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_processes_give_the_value_of_one(tmp_path):
    """Uneven shares, in different numbers of updates, and a rank that never updates."""
    index = torch.arange(25)
    uneven = ((index[:3],), (index[3:4], index[4:20], index[20:]))
    empty = ((index[:13], index[13:]), ())
    mp.spawn(work, ((uneven, empty), tmp_path / "rendezvous", tmp_path / "values"), nprocs=2)

    preds, target = random_labels(25)
    for rank in (0, 1):
        for values in torch.load(tmp_path / f"values{rank}"):
            for make, value in zip((*METRICS, *METRICS_OF_TEXTS), values, strict=True):
                alone = make()
                alone.update(*((preds, target) if make in METRICS else (PREDS, TARGET)))  # five times each
                torch.testing.assert_close(value, alone.compute(), rtol=0, atol=1e-14, equal_nan=True)


def test_metrics_of_one_collection_keep_their_settings():
    """In the first batch all of them have equal counts, which must not make them one metric."""
    from torchmetrics import MetricCollection

    perfect = torch.tensor([[0, 1] + [0] * 12])
    collection = MetricCollection(
        {
            "positive": CEF1(uncertain="positive"),
            "negative": CEF1(uncertain="negative"),
            "low": MCCS(0.0),
            "high": MCCS(0.9),
        }
    )
    collection.update(perfect, perfect)
    target = torch.tensor([[0, 1, 3] + [0] * 11])
    collection.update(perfect, target)
    got = {name: float(value) for name, value in collection.compute().items()}
    cosine = 0.5**0.5
    assert got["positive"] == pytest.approx(4 / 5)
    assert got["negative"] == 1
    assert got["low"] == pytest.approx((1 + cosine) / 2)
    assert got["high"] == pytest.approx(0.5)  # (cosine - .9) / .1 is below 0


@pytest.mark.parametrize("make", [CEF1, partial(CEF1, "example"), MCCS])
def test_metrics_of_one_collection_keep_their_labelers(make):
    """Whose answers may be equal in the first batch."""
    from torchmetrics import MetricCollection

    def everything(texts):
        return torch.ones(len(texts), 14, dtype=torch.long)

    def nothing(texts):
        return torch.zeros(len(texts), 14, dtype=torch.long)

    labelers = [lambda texts, f=f: f(texts) if "mass" in texts else everything(texts) for f in (everything, nothing)]
    collection = MetricCollection({str(i): make(labeler=labeler) for i, labeler in enumerate(labelers)})
    collection.update(["edema"], ["edema"])
    perfect = torch.ones(1, 14, dtype=torch.long)
    collection.update(["mass"], perfect)
    got = collection.compute()
    assert float(got["0"]) == 1
    assert float(got["1"]) < 1
    shared = MetricCollection({"a": make(labeler=labelers[0]), "b": make(labeler=labelers[0])})
    shared.update(["edema"], ["edema"])
    assert len(shared.compute_groups) == 1


def example_states(first, second):
    """Scores in a collection of two metrics that agree on the first batch and differ on the second."""
    metrics = MetricCollection({"one": first, "other": second})
    empty = torch.zeros(1, 14, dtype=torch.int64)
    finding, other, uncertain = (empty.index_fill(1, torch.tensor([column]), label) for column, label in SIGNS)
    metrics.update(finding, finding)
    for preds, target in ((empty, other), (empty, empty), (uncertain, finding)):
        metrics.update(preds, target)
    return [float(metric.compute()) for metric in (metrics["one"], metrics["other"])]


SIGNS = (CONDITIONS.index("Edema"), 1), (CONDITIONS.index("Fracture"), 1), (CONDITIONS.index("Edema"), 3)


def test_metrics_over_reports_with_other_conditions_are_not_updated_together():
    # Edema is found, found absent twice (0/0 = 0), and found; the fracture of the second report is missed: no change.
    first, second = CEF1("example", ["Edema"], zero_division=1), CEF1("example", ["Edema", "Fracture"], zero_division=1)
    assert example_states(first, second) == [1.0, 0.75]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # Scores of the four reports: 1, 0, of two empty reports, and of an uncertain edema.
        ({"empty": "zero"}, [0.75, 0.5]),
        ({"empty": "nan"}, [0.75, 2 / 3]),
        ({"uncertain": 0.0}, [0.75, 0.5]),
        ({"margin": 0.5, "uncertain": -1.0}, [0.75, 0.5]),
    ],
)
def test_mccs_of_other_settings_are_not_updated_together(settings, expected):
    assert example_states(MCCS(0.5), MCCS(**{"margin": 0.5, **settings})) == pytest.approx(expected)
