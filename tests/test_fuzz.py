"""Every parser with up to 1,000 generated inputs; benchmarks/fuzz.py runs more."""

import pytest

pytest.importorskip("hypothesis", reason="needs the extra dev")
pytest.importorskip("pydicom", reason="needs the extra dicom")
from hypothesis import HealthCheck, given, settings

from tests.fuzzing import Target, damaged, targets

QUICK = settings(
    max_examples=1000, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_any_input(target: Target) -> None:
    settings(QUICK, max_examples=target.quick)(given(target.inputs)(target.check))()


def test_a_property_that_does_not_hold_is_found() -> None:
    def check(content: bytes) -> None:
        assert content.endswith(b"z")

    with pytest.raises(AssertionError):
        settings(QUICK)(given(damaged(b"xyz"))(check))()
