import json

import pytest

from mrg.metrics.texts import join, read_texts


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "side", "ids", "column"),
    [
        ("r2gencmn.csv", 'a b\n"c, d"\n', "preds", None, "text"),
        ("ids.csv", '1,a b\n2,"c, d"\n', "preds", ["1", "2"], "text"),
        ("head.csv", 'study_id,model_output\n1,a b\n2,"c, d"\n', "preds", ["1", "2"], "model_output"),
        ("refs.csv", 'id,gt_report\n1,a b\n2,"c, d"\n', "target", ["1", "2"], "gt_report"),
        ("r2gengpt.json", {"1": ["a b"], "2": ["c, d"]}, "target", ["1", "2"], "text"),
        ("object.json", {"1": "a b", "2": "c, d"}, "preds", ["1", "2"], "text"),
        ("list.json", ["a b", "c, d"], "preds", None, "text"),
        ("rows.jsonl", '{"id": 1, "generated": "a b"}\n{"id": 2, "generated": "c, d"}\n', "preds", ["1", "2"],
         "generated"),
        ("both.json", [{"id": 1, "report": "a b", "preds": "x"}, {"id": 2, "report": "c, d", "preds": "x"}], "target",
         ["1", "2"], "report"),
    ],
)  # fmt: skip
def test_forms_in_use(tmp_path, name, content, side, ids, column):
    texts = read_texts(write(tmp_path / name, content), side)
    assert texts.texts == ["a b", "c, d"]
    assert (texts.ids, texts.column) == (ids, column)


def test_a_report_may_hold_line_breaks(tmp_path):
    assert read_texts(write(tmp_path / "a.csv", '"a\nb"\nc\n'), "preds").texts == ["a\nb", "c"]


def test_join_by_id_keeps_the_order_of_the_references(tmp_path):
    preds = read_texts(write(tmp_path / "p.json", {"2": "p2", "1": "p1"}), "preds")
    target = read_texts(write(tmp_path / "t.json", {"1": "t1", "2": "t2"}), "target")
    pairs = join(preds, target)
    assert (pairs.ids, pairs.preds, pairs.target) == (["1", "2"], ["p1", "p2"], ["t1", "t2"])


def test_join_by_row(tmp_path):
    preds = read_texts(write(tmp_path / "p.csv", "p1\np2\n"), "preds")
    target = read_texts(write(tmp_path / "t.json", {"x": "t1", "y": "t2"}), "target")
    pairs = join(preds, target, by_row=True)
    assert (pairs.ids, pairs.preds, pairs.target) == (["x", "y"], ["p1", "p2"], ["t1", "t2"])


def test_what_does_not_match_is_counted_and_named_on_both_sides(tmp_path):
    preds = read_texts(write(tmp_path / "p.json", {f"a{i}": "x" for i in range(7)} | {"same": "x"}), "preds")
    target = read_texts(write(tmp_path / "t.json", {"same": "y", "b": "y"}), "target")
    only_preds = r"7 of the 8 ids of .*p.json are not in .*t.json \(a0, a1, a2, a3, a4 and 2 more\)"
    with pytest.raises(ValueError, match=rf"{only_preds} and 1 of the 2 ids of .*t.json are not in .*p.json \(b\)"):
        join(preds, target)


def test_bad_input(tmp_path):
    headless = read_texts(write(tmp_path / "p.csv", "p1\np2\n"), "preds")
    target = read_texts(write(tmp_path / "t.json", {"1": "t1", "2": "t2", "3": "t3"}), "target")
    with pytest.raises(ValueError, match=r"p.csv has no ids \(id or study_id\) to join by.*--by_row"):
        join(headless, target)
    with pytest.raises(ValueError, match=r"p.csv has 2 and .*t.json 3"):
        join(headless, target, by_row=True)
    with pytest.raises(ValueError, match=r"1 studies twice: 1"):
        read_texts(write(tmp_path / "twice.csv", "id,text\n1,a\n1,b\n"), "preds")
    with pytest.raises(ValueError, match=r"'text' is not a text in 1 of 1 rows: 1"):
        read_texts(write(tmp_path / "number.json", [{"id": 1, "text": 2}]), "preds")
    with pytest.raises(
        ValueError, match=r"no column of references.*looked for 'refs'.*it has 'id', 'a', 'b'.*--target"
    ):
        read_texts(write(tmp_path / "names.csv", "id,a,b\n1,x,y\n"), "target", None, "refs")
    with pytest.raises(ValueError, match=r"holds no studies"):
        read_texts(write(tmp_path / "empty.json", []), "preds")
    with pytest.raises(FileNotFoundError):
        read_texts(tmp_path / "none.csv", "preds")


def test_line_ends_in_a_report_stay_as_they_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'"a\r\nb"\r\nc\r\n')
    assert read_texts(path, "preds").texts == ["a\r\nb", "c"]
