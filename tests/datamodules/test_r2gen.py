import json
import re
from pathlib import Path
from typing import Any

import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.r2gen import Item, read_items
from tests.refusals import refused


def _entry(name: str, report: str = "Lungs are clear.", **changes: Any) -> dict[str, Any]:
    return {"id": name, "report": report, "image_path": [f"{name}/0.png", f"{name}/1.png"], **changes}


def _content() -> dict[str, Any]:
    return {"train": [_entry("a"), _entry("b")], "val": [_entry("c")], "test": [_entry("d"), _entry("e")]}


def _write(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "annotation.json"
    file.write_text(json.dumps(content))
    return file


def _without(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


def test_items_keep_order_text_and_any_number_of_images(tmp_path: Path) -> None:
    content = _content()
    content["train"] = [
        _entry("z", "  Two spaces,\nand a line. ", image_path=["z/0.png"]),
        _entry("y", image_path=["y/0.png", "y/1.png", "y/2.png"], split="train"),
    ]
    items = read_items(_write(tmp_path, content))
    assert items["train"] == [
        Item("z", "  Two spaces,\nand a line. ", ("z/0.png",)),
        Item("y", "Lungs are clear.", ("y/0.png", "y/1.png", "y/2.png")),
    ]
    assert [item.id for item in items["test"]] == ["d", "e"]


def test_other_keys_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "annotation.json"
    file.write_text(json.dumps({**_content(), "all": []}), encoding="utf-8-sig")
    assert list(read_items(file)) == ["train", "val", "test"]


def _refused(file: Path, error: type[Exception] = DataError) -> str:
    return refused(lambda: read_items(file), error, file.parent)


def test_missing_folder(tmp_path: Path) -> None:
    message = _refused(tmp_path / "nowhere" / "annotation.json", DataNotFoundError)
    assert message.startswith(f"Folder {tmp_path / 'nowhere'} does not exist; set `data.init_args.root` to the folder")


def test_root_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a folder; set `data.init_args.root`" in _refused(
        tmp_path / "file" / "annotation.json", DataNotFoundError
    )


def test_missing_file(tmp_path: Path) -> None:
    message = _refused(tmp_path / "annotation.json", DataNotFoundError)
    assert "annotation.json does not exist; set `data.init_args.root`" in message
    assert isinstance(DataNotFoundError(), FileNotFoundError)
    assert isinstance(DataError(), ValueError)


def test_truncated_json_says_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "annotation.json"
    file.write_text('{"train": [\n{"id": "a", "report" "x"}]}')
    message = _refused(file)
    assert "is not valid JSON (Expecting ':' delimiter at line 2, column 22); copy it again" in message
    assert "`data.init_args.root`" in message
    file.write_text(json.dumps(_content())[:-30])
    assert re.search(r"is not valid JSON \(.* at line 1, column \d+\)", _refused(file))


def test_empty_and_binary_files(tmp_path: Path) -> None:
    file = tmp_path / "annotation.json"
    file.write_text("")
    assert "is not valid JSON (Expecting value at line 1, column 1)" in _refused(file)
    file.write_bytes(b'{"train": "\xff"}')
    assert "is not UTF-8 text (at byte 11); copy it again" in _refused(file)


def test_not_an_object(tmp_path: Path) -> None:
    assert "expected an object with the keys train, val and test, but got a list" in _refused(_write(tmp_path, [1]))


def test_a_split_under_a_blank_key(tmp_path: Path) -> None:
    content = _content()
    content["    "] = content.pop("test")
    message = _refused(_write(tmp_path, content))
    assert "has no split 'test', only the keys ['train', 'val', '    ']" in message
    assert "rename the key '    ' to 'test' if it holds that split" in message
    assert "`data.init_args.root`" in message


def test_several_missing_splits(tmp_path: Path) -> None:
    message = _refused(_write(tmp_path, {"train": [_entry("a")], "dev": []}))
    assert (
        "has no split 'val' and no split 'test', only the keys ['train', 'dev']; take the file published at" in message
    )


@pytest.mark.parametrize(("value", "got"), [([], "an empty one"), ({}, "a dict"), (None, "a NoneType")])
def test_a_split_that_is_no_list_of_studies(tmp_path: Path, value: Any, got: str) -> None:
    message = _refused(_write(tmp_path, {**_content(), "val": value}))
    assert f"expected split 'val' to be a list of studies, but got {got}; " in message


@pytest.mark.parametrize("key", ["id", "report", "image_path"])
def test_an_item_without_a_field(tmp_path: Path, key: str) -> None:
    entry = _without(_entry("d"), key)
    message = _refused(_write(tmp_path, {**_content(), "test": [_entry("e"), entry]}))
    assert f"split 'test', item 1 has no {key!r}, only the keys {list(entry)}; add it or remove the item." in message


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (["d"], "item 0: expected an object, but got a list; remove it."),
        (_entry("d", id=7), "item 0: expected 'id' to be a non-empty string, but got 7; add it."),
        (_entry(" "), "item 0: expected 'id' to be a non-empty string, but got ' '; add it."),
        (_entry("d", report=7), "item 0 (id 'd'): expected 'report' to be a string, but got 7;"),
        (_entry("d", image_path="d/0.png"), "expected 'image_path' to be a list of strings, but got 'd/0.png';"),
        (_entry("d", image_path=[None]), "expected 'image_path' to be a list of strings, but got [None];"),
        (_entry("d", image_path=[]), "item 0 (id 'd') has no images; add their paths to 'image_path' or remove the"),
    ],
)
def test_an_item_with_a_wrong_value(tmp_path: Path, entry: Any, expected: str) -> None:
    assert expected in _refused(_write(tmp_path, {**_content(), "test": [entry]}))


def test_ids_repeated_within_a_split(tmp_path: Path) -> None:
    message = _refused(_write(tmp_path, {**_content(), "test": [_entry("d"), _entry("e"), _entry("d")]}))
    assert "1 ids occur more than once in split 'test': d; keep one item for each." in message


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("train", "test"), ("val", "test")])
def test_ids_in_two_splits(tmp_path: Path, first: str, second: str) -> None:
    content = _content()
    content[second].append(content[first][0])
    message = _refused(_write(tmp_path, content))
    assert (
        f"1 ids are in split '{first}' and in split '{second}': {content[first][0]['id']}; keep each in one" in message
    )


def test_empty_reports_are_counted_and_named(tmp_path: Path) -> None:
    content = _content()
    content["train"] += [_entry(f"empty{index}", report=" \n" * (index % 2)) for index in range(7)]
    message = _refused(_write(tmp_path, content))
    assert "7 studies have an empty report: empty0, empty1, empty2, empty3, empty4, …; set" in message
    assert "`data.init_args.empty_reports` to drop" in message


@pytest.mark.parametrize("word", ["nan", "None", "N/A", "null", "-", None, float("nan")])
def test_a_word_for_nothing_is_an_empty_report(tmp_path: Path, word: Any) -> None:
    content = _content()
    content["train"].insert(0, _entry("blank", report=word))
    assert "1 studies have an empty report: blank; set" in _refused(_write(tmp_path, content))
    assert read_items(_write(tmp_path, content), empty_reports="keep")["train"][0].report == ""


def test_empty_reports_are_kept_by_option(tmp_path: Path) -> None:
    content = _content()
    content["train"].insert(0, _entry("empty", report=""))
    items = read_items(_write(tmp_path, content), empty_reports="keep")
    assert [item.id for item in items["train"]] == ["empty", "a", "b"]


@pytest.mark.parametrize(
    ("value", "patient"), [(10046166, "10046166"), (10046166.0, "10046166"), (None, ""), ("7", "7")]
)
def test_patients_are_read_by_the_rule_of_tables(tmp_path: Path, value: Any, patient: str) -> None:
    """A missing one is unknown, and not the patient None, whom all such studies would share."""
    content = {**_content(), "test": [_entry("d", subject_id=value)]}
    assert read_items(_write(tmp_path, content))["test"][0].patient == patient


def test_a_repeated_key_is_an_error(tmp_path: Path) -> None:
    file = _write(tmp_path, _content())
    text = (tmp_path / "annotation.json").read_text()
    (tmp_path / "annotation.json").write_text(text[:-1] + ', "test": []}')
    assert "annotation.json: the key 'test' occurs more than once" in _refused(file)
