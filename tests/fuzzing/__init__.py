"""Properties of every parser for any input: a value or an error of ours, and what holds for all values.

`tests/test_fuzz.py` checks up to 1,000 inputs of each, `benchmarks/fuzz.py` 100,000.
"""

from tests.fuzzing.data import data_targets
from tests.fuzzing.inputs import Target, damaged
from tests.fuzzing.runs import run_targets
from tests.fuzzing.texts import text_targets

__all__ = ["Target", "damaged", "targets"]


def targets() -> list[Target]:
    """All parsers."""
    return [*text_targets(), *data_targets(), *run_targets()]
