"""Notes and names that `python -m mrg.metrics` prints."""

from pathlib import Path

import pytest

from mrg.errors import UserError
from mrg.metrics.__main__ import _column, _missing, _names, _notes, _read_columns, _system_names
from mrg.metrics.predictions import Predictions


def predictions(preds, no_target=(), no_preds=(), target=None, column="target"):
    ids = [f"s{i}" for i in range(len(preds))]
    columns = {"id": "id", "preds": "prediction", "target": column}
    return Predictions(ids, list(preds), target or ["x"] * len(preds), True, columns, tuple(no_target), tuple(no_preds))


def test_notes_on_what_is_missing():
    assert _missing(predictions(["a", "b"])) == []
    assert _missing(predictions(["a", " "], no_target=["t1", "t2"], no_preds=["s1"])) == [
        "Excluded: 2 of 4 studies have no reference: t1, t2.",
        "1 of 2 reports are empty and scored as such, of which 1 hold a word such as nan: s1.",
    ]
    assert _missing(predictions(["", ""])) == ["2 of 2 reports are empty and scored as such."]
    (line,) = _missing(predictions(["<think>a", "<report>b", "c"]))
    assert line.startswith("2 of 3 reports have <think> or <report> tags and are scored with all that is in them: ")


def test_notes_on_a_file():
    usual = "Reports: 'prediction'; references: 'target'; ids: 'id'."
    many, repeated = [str(i) for i in range(100)], ["x"] * 100
    assert _notes(predictions(many, target=repeated)) == usual
    assert _notes(predictions(many[:99], target=repeated[:99])) == (
        f"{usual}\n99 studies are few: the intervals are wide."
    )
    assert "\nNo reference occurs more than once: the row 'most frequent reference' is" in _notes(
        predictions(many, target=many)
    )
    assert _read_columns(predictions(["a"], column="section_findings")) == (
        "Reports: 'prediction'; references: 'section_findings'; ids: 'id'. ReXrank scores findings; --target report "
        "would score them against whole reports."
    )


def test_names_of_systems_have_as_many_folders_as_needed():
    assert _system_names([Path("a/x.json"), Path("b/y.csv")]) == ["x", "y"]
    assert _system_names([Path("a/x.json"), Path("b/x.csv")]) == ["a/x", "b/x"]
    assert _system_names([Path("r/a/x.json"), Path("s/a/x.json"), Path("y")]) == ["r/a/x", "s/a/x", "y"]
    with pytest.raises(UserError, match=r"one is given twice: a/x\.json, a/x\.json"):
        _system_names([Path("a/x.json")] * 2)
    assert _names(Path("a/x.json"), Path("b/y.json")) == ("x.json", "y.json")
    assert _names(Path("a/x.json"), Path("b/x.json")) == ("a/x.json", "b/x.json")


def test_a_given_column_of_several_files():
    held = [["hyp"], ["out", "text"]]
    assert _column(["hyp", "out"], held[0], held) == "hyp"
    assert _column(["hyp", "out"], held[1], held) == "out"
    assert _column(["hyp"], held[1], held) is None
    assert _column(["hpy", "out"], held[1], held) == "hpy"  # the reader lists what there is
    assert _column([], held[1], held) is None
