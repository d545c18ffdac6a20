import pytest
import torch
from torch import nn

from mrg.metrics import CEF1, MCCS, ChangeF1, FindingF1, ReportScore, RulesLabeler

TARGET = ["Mild cardiomegaly. No pleural effusion.", "Small left effusion. Possible edema.", "Edema."]
PREDS = ["The heart is enlarged. No effusion.", "Small left effusion.", ""]


def words(preds, target):
    return [float(len(text.split())) for text in target]


def metrics():
    labeler = RulesLabeler()
    example = CEF1("example", labeler=labeler)
    ce = CEF1("micro", labeler=labeler)
    return [MCCS(labeler=labeler), example, ce, FindingF1(average="example"), ChangeF1(), ReportScore(words)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "convert",
    [lambda metric, dtype: nn.ModuleList([metric]).to(dtype), lambda metric, dtype: metric.set_dtype(dtype)],
    ids=["module.to", "set_dtype"],
)
def test_scores_do_not_depend_on_the_dtype_of_the_module(convert, dtype):
    for metric, plain in zip(metrics(), metrics(), strict=True):
        for _ in range(20):
            metric.update(PREDS, TARGET)
            plain.update(PREDS, TARGET)
        convert(metric, dtype)
        for _ in range(20):
            metric.update(PREDS, TARGET)
            plain.update(PREDS, TARGET)
        assert torch.equal(metric.compute(), plain.compute())
        assert metric.compute().dtype == torch.float64
        metric.reset()
        assert torch.equal(metric(PREDS, TARGET), plain(PREDS, TARGET))


def test_states_move_with_the_module():
    holder = nn.ModuleList([MCCS()]).to("meta", torch.bfloat16)
    assert (holder[0].total.device.type, holder[0].total.dtype) == ("meta", torch.float64)
    assert holder[0].device.type == "meta"
