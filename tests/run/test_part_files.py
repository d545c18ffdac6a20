"""Reports on disk before a command has finished."""

import json
import logging

import pytest
import torch

from mrg.errors import UserError
from mrg.run.part_files import PartFiles

IDENTITY = {"policy": "tiny", "data": "eight studies"}


def rows(*names):
    return [{"id": name, "prediction": f"Report {name}.\u2028", "labels": torch.tensor([1, 2])} for name in names]


def plain(*names):
    return [{**row, "labels": [1, 2]} for row in rows(*names)]


def test_rows_of_all_ranks_are_merged_into_one_file(tmp_path):
    PartFiles(tmp_path, "predict", IDENTITY).write(rows("a", "c"))
    second = PartFiles(tmp_path, "predict", IDENTITY, rank=1)
    second.write(rows("b"))
    second.write([])
    second.write(rows("d"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predict.rank0.jsonl", "predict.rank1.jsonl"]
    parts = PartFiles(tmp_path, "predict", IDENTITY)
    assert parts.count() == 4
    assert parts.resume() == plain("a", "c", "b", "d")
    assert [path.name for path in tmp_path.iterdir()] == ["predict.rank0.jsonl"]
    parts.write(rows("e"))
    assert PartFiles(tmp_path, "predict", IDENTITY).resume() == plain("a", "c", "b", "d", "e")
    parts.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_anywhere_gives_whole_batches(tmp_path):
    """A batch of which a part is lost is computed again, so that it is padded as before."""
    parts = PartFiles(tmp_path, "predictions", IDENTITY)
    for batch in (("a", "b"), ("c", "d"), ("e",)):
        parts.write(rows(*batch))
    whole = parts.file.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        parts.file.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends)  # the line break itself may be missing
        batches = sum(lines >= least for least in (3, 5, 6))
        assert parts.count() == (0, 2, 4, 5)[batches]
    parts.file.write_bytes(whole[: ends[3] + 7])
    assert parts.resume() == plain("a", "b")
    parts.write(rows("c"))  # after a clean end
    assert parts.resume() == plain("a", "b", "c")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"[1]\n", b'{"id": 7}\n', b"[" * 100_000, b"null"])
def test_damaged_files_hold_no_reports(tmp_path, content):
    parts = PartFiles(tmp_path, "predictions", IDENTITY)
    parts.file.write_bytes(content)
    assert parts.resume() == []
    assert not parts.file.exists()


def test_reports_of_other_settings_are_not_used(tmp_path):
    PartFiles(tmp_path, "predictions", IDENTITY).write(rows("a"))
    parts = PartFiles(tmp_path, "predictions", {**IDENTITY, "policy": "large"})
    with pytest.raises(UserError) as error:
        parts.resume()
    assert str(error.value) == (
        f"{parts.file} cannot be resumed: it was written with another policy. Use the settings of that run, or leave "
        "out --resume to start over."
    )
    assert parts.count() == 1


def test_starting_over_says_what_is_removed(tmp_path, caplog):
    parts = PartFiles(tmp_path, "predictions", IDENTITY)
    with caplog.at_level(logging.WARNING, "mrg"):
        parts.start_over()
        assert not caplog.messages
        parts.write(rows("a", "b"))
        parts.start_over()
    assert caplog.messages == [
        f"Removing 2 finished reports in {tmp_path / 'predictions.rank*.jsonl'}, which --resume auto would have used."
    ]
    assert parts.count() == 0


def test_half_of_a_surrogate_pair_can_be_written(tmp_path):
    """A file name that is not UTF-8 has some."""
    parts = PartFiles(tmp_path, "predictions", IDENTITY)
    parts.write([{"id": "a\udce9", "prediction": "\ud83d"}])
    assert parts.resume() == [{"id": "a\udce9", "prediction": "\ud83d"}]
    assert json.loads(parts.file.read_text(encoding="utf-8").splitlines()[1])["id"] == "a\udce9"
