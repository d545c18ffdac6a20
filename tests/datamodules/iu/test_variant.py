import logging

import pytest

from mrg.datamodules.annotation import AnnotationError
from mrg.datamodules.iu.variant import check_variant, describe_variant
from mrg.datamodules.study import Study


def _studies(num: int) -> list[Study]:
    return [Study(str(index), (), "") for index in range(num)]


def test_the_published_variant_is_known_by_its_counts(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": _studies(2069), "val": _studies(296), "test": _studies(590)}
    assert describe_variant(splits) == "R2Gen split (train 2069, val 296, test 590)"
    check_variant(splits, "r2gen")
    check_variant(splits, "any")
    assert not caplog.records


def test_another_variant_is_warned_of_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": _studies(3062), "val": _studies(382), "test": _studies(382)}
    assert describe_variant(splits) == "unknown variant with counts train 3062, val 382, test 382"
    with caplog.at_level(logging.WARNING):
        check_variant(splits)
    assert [record.getMessage() for record in caplog.records] == [
        "IU X-Ray is an unknown variant with counts train 3062, val 382, test 382, but the R2Gen split has train 2069, "
        "val 296, test 590: results cannot be compared with published ones."
    ]
    with pytest.raises(AnnotationError, match=r"unknown variant .* `data\.init_args\.variant` to any"):
        check_variant(splits, "r2gen")
    with pytest.raises(ValueError, match="Expected argument `variant` to be 'r2gen' or 'any', but got 'paper'"):
        check_variant(splits, "paper")  # type: ignore[arg-type]
