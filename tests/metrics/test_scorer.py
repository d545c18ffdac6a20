import pickle
import re
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mrg.metrics.scorer import ReportScore, load_scorer

PREDS = ["no effusion", "edema", "", "small nodule", "clear lungs", "edema", "mass"]
TARGET = ["no pleural effusion", "edema", "edema", "large nodule", "no edema", "no mass", "no mass"]
OVERLAP = [2 / 3, 1, 0, 1 / 2, 0, 0, 1 / 2]


def overlap(preds, target):
    """Share of the reference's words that the report has."""
    return [len(set(p.split()) & set(t.split())) / len(set(t.split())) for p, t in zip(preds, target, strict=True)]


def length(preds, target):
    return [len(p.split()) for p in preds]


class Network(nn.Module):
    """A scorer that is a network, as that of the radgraph package."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, preds, target):
        return self.dropout(self.weight * torch.tensor(overlap(preds, target)))


def test_by_hand_and_in_batches():
    whole, parts, forward = ReportScore(overlap), ReportScore(overlap), ReportScore(overlap)
    whole.update(PREDS, TARGET)
    assert whole.compute().dtype == torch.float64
    assert float(whole.compute()) == pytest.approx(sum(OVERLAP) / 7)
    parts.update([], [])
    for start, stop in ((0, 1), (1, 5), (5, 7)):
        parts.update(PREDS[start:stop], TARGET[start:stop])
        value = forward(PREDS[start:stop], TARGET[start:stop])
        assert float(value) == pytest.approx(sum(OVERLAP[start:stop]) / (stop - start))
    for metric in (parts, forward):
        torch.testing.assert_close(metric.compute(), whole.compute(), rtol=0, atol=1e-15)
    whole.reset()
    whole.update(PREDS[:2], TARGET[:2])
    assert float(whole.compute()) == pytest.approx(5 / 6)


def test_scores_leave_the_state_alone():
    metric = ReportScore(overlap)
    metric.update(PREDS[:1], TARGET[:1])
    assert metric.scores(PREDS, TARGET).tolist() == pytest.approx(OVERLAP)
    assert metric.scores(PREDS, TARGET).dtype == torch.float64
    assert metric.scores([], []).tolist() == []
    assert float(metric.compute()) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "convert",
    [tuple, np.array, torch.tensor, iter, lambda values: [torch.tensor(v) for v in values], np.float32],
    ids=["tuple", "array", "tensor", "iterator", "tensors", "float32"],
)
def test_what_a_scorer_may_return(convert):
    metric = ReportScore(lambda preds, target: convert(overlap(preds, target)))
    assert metric.scores(PREDS, TARGET).tolist() == pytest.approx(OVERLAP)


def test_wrong_input():
    metric = ReportScore(overlap)
    with pytest.raises(ValueError, match="same length, but got 1 and 2"):
        metric.update(["a"], ["a", "b"])
    with pytest.raises(TypeError, match=r"`preds\[1\]` to be a string, but got NoneType"):
        metric.update(["a", None], ["a", "b"])
    with pytest.raises(TypeError, match="put it in a list"):
        metric.update("edema", "edema")
    for scorer, what in (
        (Network, "the class Network, not an object"),
        ("overlap", "an object of type str"),
        (ReportScore(overlap), "the metric ReportScore"),
    ):
        with pytest.raises(TypeError, match=f"`scorer` to be a function of two lists of strings, but got {what}"):
            ReportScore(scorer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (0.5, "`bad` to return a list, but got float"),
        (torch.tensor(0.5), "`bad` to return a list, but got Tensor"),
        (None, "`bad` to return a list, but got NoneType"),
        ([0.5], "`bad` to return 2 values, one per report, but got 1"),
        ([0.5, None], "`bad` to return numbers, but got NoneType for report 1"),
        (torch.zeros(2, 3), "`bad` to return numbers, but got Tensor for report 0"),
        ([0.5, float("nan")], "`bad` to return finite values, but got nan for report 1"),
        ([float("-inf"), float("nan")], "`bad` to return finite values, but got -inf for report 0"),
    ],
)
def test_wrong_output(values, message):
    metric = ReportScore(lambda preds, target: values, name="bad")
    with pytest.raises(ValueError, match=message):
        metric.update(["a", "b"], ["a", "b"])
    assert int(metric.num) == 0


def test_names_and_direction():
    assert ReportScore(overlap).name == "overlap"
    assert ReportScore(Network()).name == "Network"
    assert ReportScore(overlap, name="words").name == "words"
    errors = ReportScore(length, higher_is_better=False)
    assert errors.higher_is_better is False
    assert ReportScore(overlap).higher_is_better is True
    assert pickle.loads(pickle.dumps(errors)).higher_is_better is False


def test_a_scorer_is_not_a_submodule_and_runs_without_gradients():
    scorer = Network().eval()
    metric = ReportScore(scorer)
    metric.train()
    metric.persistent(True)
    assert not scorer.training
    assert not scorer.dropout.training
    assert list(metric.parameters()) == list(metric.children()) == []
    assert set(metric.state_dict()) == {"settings", "total", "num"}
    values = []
    metric_of_values = ReportScore(lambda preds, target: values.append(scorer(preds, target)) or values[-1])
    metric_of_values.scores(PREDS, TARGET)
    assert not values[0].requires_grad
    assert metric.scores(PREDS, TARGET).tolist() == pytest.approx(OVERLAP)


def test_copies():
    metric = ReportScore(Network().eval(), name="words")
    metric.update(PREDS, TARGET)
    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):
        assert copy.name == "words"
        torch.testing.assert_close(copy.compute(), metric.compute(), rtol=0, atol=0)
        copy.update(["edema"], ["edema"])
        assert int(copy.num) == 8
    assert int(metric.num) == 7


def test_collections_keep_scorers_apart():
    """Both score 1 in the first batch, and addresses of objects differ by little for their size."""
    from torchmetrics import MetricCollection

    collection = MetricCollection({"overlap": ReportScore(overlap), "length": ReportScore(length)})
    for copy in (collection, collection.clone(prefix="val/")):
        copy.update(["edema"], ["edema"])
        copy.update(["no lung edema"], ["no edema seen"])
        values = {name.removeprefix("val/"): float(value) for name, value in copy.compute().items()}
        assert values == pytest.approx({"overlap": (1 + 2 / 3) / 2, "length": 2})


def work(rank, shares, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    values = []
    for share in shares:
        metric = ReportScore(overlap)
        for start, stop in share[rank]:
            metric.update(PREDS[start:stop], TARGET[start:stop])
        values.append(metric.compute())
    torch.save(values, f"{results}{rank}")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_processes_give_the_value_of_one(tmp_path):
    """Uneven shares, in different numbers of updates, and a rank that never updates."""
    shares = ((((0, 1),), ((1, 3), (3, 7))), (((0, 7),), ()))
    mp.spawn(work, (shares, tmp_path / "rendezvous", tmp_path / "values"), nprocs=2)
    for rank in (0, 1):
        for value in torch.load(tmp_path / f"values{rank}"):
            assert float(value) == pytest.approx(sum(OVERLAP) / 7)


def test_load_scorer(tmp_path, monkeypatch):
    (tmp_path / "my_scorers.py").write_text(
        "class Words:\n"
        "    def __call__(self, preds, target):\n"
        "        return [float(p == t) for p, t in zip(preds, target)]\n"
        "    def halves(self, preds, target):\n"
        "        return [0.5] * len(preds)\n"
        "words = Words()\nnumber = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_scorer("my_scorers:words")(["a", "b"], ["a", "a"]) == [1, 0]
    assert load_scorer("my_scorers:words.halves")(["a"], ["a"]) == [0.5]
    for path in ("my_scorers", "my_scorers.words", "my_scorers:", ":words", "my_scorers:words()", "my scorers:words"):
        with pytest.raises(ValueError, match=re.escape(f"'package.module:function', but got {path!r}")):
            load_scorer(path)
    with pytest.raises(
        ImportError, match=r"'no_such:words' could not be imported: ModuleNotFoundError: No module named 'no_such'"
    ):
        load_scorer("no_such:words")
    with pytest.raises(ImportError, match=r"'my_broken:words'.*No module named 'a_package_that_is_missing'"):
        load_scorer("my_broken:words")
    with pytest.raises(ValueError, match="`my_scorers` has no such attribute 'wordz'"):
        load_scorer("my_scorers:wordz")
    with pytest.raises(ValueError, match=r"`my_scorers\.words` has no such attribute 'thirds'"):
        load_scorer("my_scorers:words.thirds")
    with pytest.raises(TypeError, match="but got the class Words, not an object made from it"):
        load_scorer("my_scorers:Words")
    with pytest.raises(TypeError, match="but got an object of type int"):
        load_scorer("my_scorers:number")
    sys.modules.pop("my_scorers")
