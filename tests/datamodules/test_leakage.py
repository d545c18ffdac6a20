from mrg.datamodules.leakage import leakage_free
from mrg.datamodules.study import Study


def test_leakage_free_folds_case_and_space_and_keeps_order() -> None:
    train = [Study("a", (), "Lungs are clear."), Study("b", (), "Heart large.")]
    same, other, point = (
        Study("c", (), " LUNGS  are\nclear. "),
        Study("d", (), "No effusion."),
        Study("e", (), "Lungs are clear"),  # the full stop counts
    )
    assert leakage_free([same, other, point], train) == [other, point]
    assert leakage_free([point, same], []) == [point, same]
    assert leakage_free([same], train) == []
