import json
import re

import pytest

from mrg.commands.data_check import check_splits
from mrg.commands.data_check.page import write_check_page
from mrg.commands.data_check.table import Table, format_check, tables
from mrg.datamodules.study import Study, View
from mrg.metrics import RulesLabeler
from tests.commands.data_check.studies import LARGE, NORMAL, splits, view


def described(result):
    data = {"description": "Synthetic studies", "removed": {"too short": 3}, "config": {"root": "<b>"}}
    return {"mrg": "1", "name": "mine", "data": data, **result}


@pytest.fixture(scope="module")
def result():
    return described(check_splits(splits(), RulesLabeler()))


def test_counts(result):
    assert {split: (row["studies"], row["images"], row["patients"]) for split, row in result["counts"].items()} == {
        "train": (4, 6, 3),
        "val": (1, 1, 1),
        "test": (3, 4, 2),
    }
    assert result["counts"]["train"]["views"] == {"F,L": 1, "L,F": 1, "F": 1, "?": 1}
    assert result["counts"]["test"]["without_patient"] == 1


def test_equal_studies_give_equal_json(result):
    again = json.dumps(described(check_splits(splits(), RulesLabeler())))
    assert json.dumps(result) == again
    assert json.loads(again) == result


def test_messages_name_what_must_not_be_missed(result):
    texts = [row["text"] for row in result["messages"]]
    assert texts == [
        "Groups of identical images in several splits: 2.",
        "Empty reports in train: 1 of 4.",
        "Verbatim overlap with train, ignoring case and spacing: 2 of 3 test reports (66.7 %), among them 1 of the 2 "
        "abnormal ones (labeler rules). Without overlap: 1.",
        "Patients in both test and train: 1, with 1 of the 3 test studies.",
    ]
    assert {row["kind"] for row in result["messages"]} == {"warning"}


def test_errors_come_first(tmp_path):
    studies = splits()
    studies["val"] += [Study("e", (View(tmp_path / "lost.png"),), LARGE), Study("x", (), NORMAL)]
    result = check_splits(studies, RulesLabeler(), read_images=False)
    errors = [row["text"] for row in result["messages"] if row["kind"] == "error"]
    assert errors == [
        "Missing images: 1 of 12.",
        "Studies of val with the id of another study: 1 (e).",
        "Studies of val without images: 1.",
    ]
    kinds = [row["kind"] for row in result["messages"]]
    assert kinds == sorted(kinds, key=["error", "warning", "note"].index)
    assert any("not read" in row["text"] for row in result["messages"])


def test_no_study_is_an_error():
    with pytest.raises(ValueError, match="at least one study to check, but the splits train, test are empty"):
        check_splits({"train": [], "test": []}, RulesLabeler())


def test_a_test_set_alone_can_be_checked(tmp_path):
    result = described(check_splits({"train": [], "val": [], "test": splits()["test"]}, RulesLabeler()))
    assert result["leakage"] == []
    assert "train is empty." in [row["text"] for row in result["messages"]]
    assert "Baselines on the test split" in format_check(result, "x.json")
    write_check_page(tmp_path / "page.html", result)


def test_reports_without_references_can_be_checked(tmp_path):
    studies = [Study(str(i), (view(),), "") for i in range(3)]
    result = described(check_splits({"train": [], "val": [], "test": studies}, RulesLabeler()))
    assert result["baselines"]["scores"] == {}
    assert "Findings" not in format_check(result, "x.json")
    write_check_page(tmp_path / "page.html", result)


def test_table_columns_are_flush():
    text = str(Table("k", "Title", ["", "a"], [["row", "1"], ["longer row", "1,000"]], "Note."))
    assert text.splitlines() == ["Title", "Note.", "                  a", "  row             1", "  longer row  1,000"]


def test_printed_tables(result):
    text = format_check(result, "x.json")
    assert text.startswith("Warning: Groups")
    assert re.search(r"^  studies +4 +1 +3$", text, re.MULTILINE)
    assert re.search(r"^  too short +3$", text, re.MULTILINE)
    assert re.search(r"^  F,L +1 \(25\.0 %\) +0 \(0\.0 %\) +1 \(33\.3 %\)$", text, re.MULTILINE)
    assert re.search(r"^  test in train +1 \(33\.3 %\) +2 \(66\.7 %\) +1 of 2 +1 +1 \(33\.3 %\)$", text, re.MULTILINE)
    assert max(len(line) for line in text.splitlines()) <= 112


def test_long_lists_are_named_not_printed(tmp_path):
    studies = [Study(f"s{i}", (View(tmp_path / f"{i}.png"),), NORMAL) for i in range(7)]
    result = described(check_splits({"train": studies}, RulesLabeler()))
    text = format_check(result, "out/x.json")
    assert sum(line.endswith(".png") for line in text.splitlines()) == 5
    assert "… all 7 in out/x.json" in text
    write_check_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert all(f"s{i}  {tmp_path / f'{i}.png'}" in page for i in range(7))


def test_the_page_holds_every_table_and_no_markup_of_the_data(tmp_path):
    studies = splits()
    evil = "<script>alert('x')</script> & the lungs are clear."
    studies["train"] += [Study(f"<i>{i}", (view("", 9),), evil) for i in range(2)]
    result = described(check_splits(studies, RulesLabeler()))
    write_check_page(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "&lt;i&gt;0" in page
    assert "<b>&" not in page
    for table in tables(result):
        assert f'id="{table.key}"' in page
        assert all(f"<td>{cell}</td>" in page for cell in table.rows[0][1:])
    assert page.count("<svg ") == 4  # words, numbers of views, leakage, findings; sizes are all the same
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)


def test_sizes_are_drawn_where_they_differ(tmp_path):
    studies = [Study("a", (view(shape=(100, 200)), view(shape=(300, 200))), NORMAL)]
    write_check_page(tmp_path / "page.html", described(check_splits({"train": studies}, RulesLabeler())))
    page = (tmp_path / "page.html").read_text()
    assert "Histogram of the images&#39; longer side in pixels." in page
    assert "width by height" in page
