import pytest
import torch

from mrg.metrics import CEF1, CONDITIONS
from tests.metrics.test_ce import PREDS, TARGET

pytest.importorskip("matplotlib").use("Agg")


def test_bars_are_the_scores():
    import matplotlib.pyplot as plt

    for average in ("micro", "example"):
        metric = CEF1(average, conditions=["Cardiomegaly", "Pleural Effusion", "Fracture"])
        metric.update(PREDS, TARGET)
        figure, axes = metric.plot()
        assert [bar.get_width() for bar in axes.patches] == [1.0, 0.0, 0.0]
        assert {bar.get_height() for bar in axes.patches} == {0.65}  # bars with gaps
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "Cardiomegaly (1)",
            "Pleural Effusion (1)",
            "Fracture (0)",
        ]
        assert [text.get_text() for text in axes.texts] == ["100.0", "0.0", "undefined"]
        assert [text.get_position() for text in axes.texts] == [(1.01, 0), (0.01, 1), (0.01, 2)]
        assert [text.get_color() for text in axes.texts] == ["black", "black", "gray"]
        assert axes.get_xlim() == (0, 1.08)
        assert axes.yaxis_inverted()
        assert axes.xaxis.get_major_formatter()(0.25, 0) == "25"
        assert axes.get_xlabel() == "F1 in percent (in brackets: support)"
        shown = {side for side, spine in axes.spines.items() if spine.get_visible()}
        assert shown == {"left", "bottom"}
        plt.close(figure)


def test_given_values_and_axes():
    import matplotlib.pyplot as plt

    metric = CEF1("none", 5)
    metric.update(PREDS, TARGET)
    figure, axes = plt.subplots()
    assert metric.plot(metric.compute(), axes) == (figure, axes)
    assert [bar.get_width() for bar in axes.patches] == metric.compute().tolist()
    with pytest.raises(ValueError, match="`val` to hold 5 values, but got 2"):
        metric.plot(torch.zeros(2))
    plt.close("all")


def test_support_is_that_of_the_references():
    """Of three reports that state edema, one is right; a fourth misses it: 1 + 1 references, not 1 + 2."""
    import matplotlib.pyplot as plt

    edema = CONDITIONS.index("Edema")
    preds, target = torch.zeros(4, 14, dtype=torch.int64), torch.zeros(4, 14, dtype=torch.int64)
    preds[:3, edema], target[[0, 3], edema] = 1, 1
    metric = CEF1(conditions=["Edema"])
    metric.update(preds, target)
    _, axes = metric.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Edema (2)"]
    plt.close("all")
