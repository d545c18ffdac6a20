import json
import logging
import os
import pickle

import pytest
from datasets import Features, Value

from mrg.datamodules.mimic import index
from mrg.datamodules.mimic.index import open_index

FEATURES = Features({"id": Value("string"), "names": [Value("string")]})


class Source:
    """Three shards of two rows; notes which are made, and can be killed at one."""

    def __init__(self):
        self.made, self.killed_at, self.counted = [], -1, 0

    def count(self):
        self.counted += 1
        return 3

    def rows(self, shard):
        if shard == self.killed_at:
            raise KeyboardInterrupt
        self.made.append(shard)
        return [{"id": f"{shard}-{row}", "names": ["a"] * row} for row in range(2)]

    def open(self, folder, made_from="x", **kwargs):
        return open_index(folder, "Test", {"table": made_from, "other": "y"}, self.count, self.rows, FEATURES, **kwargs)


@pytest.fixture
def source():
    return Source()


@pytest.fixture(autouse=True)
def notes(caplog):
    with caplog.at_level(logging.INFO, "mrg"):
        yield caplog


def test_rows_come_back_in_order_and_from_disk(source, tmp_path, notes):
    table = source.open(tmp_path / "a" / "b")
    assert table["id"][:] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert table[3] == {"id": "1-1", "names": ["a"]}
    assert notes.messages == [f"Test: index of 6 rows in {tmp_path / 'a' / 'b'}, 3 of 3 shards built in 0 s."]
    again = source.open(tmp_path / "a" / "b")
    assert source.made == [0, 1, 2]
    assert source.counted == 1
    assert again[:] == table[:]
    assert notes.messages[1:] == [f"Test: index of 6 rows in {tmp_path / 'a' / 'b'}."]


def test_a_killed_build_goes_on_where_it_stopped(source, tmp_path):
    source.killed_at = 1
    with pytest.raises(KeyboardInterrupt):
        source.open(tmp_path)
    assert [path.name.rpartition("-")[2] for path in sorted(tmp_path.iterdir())] == ["index.json", "00000.arrow"]
    source.killed_at = -1
    assert len(source.open(tmp_path)) == 6
    assert source.made == [0, 1, 2]


def test_half_a_shard_is_never_taken_for_a_whole_one(source, tmp_path, monkeypatch):
    def fail(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", fail)
    with pytest.raises(KeyboardInterrupt):
        source.open(tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    source.open(tmp_path)
    (shard,) = tmp_path.glob("shard-*-00001.arrow")
    shard.write_bytes(shard.read_bytes()[:100])
    assert len(source.open(tmp_path)) == 6
    assert source.made == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("what", ["a text", "a length", "the number of shards"])
def test_one_wrong_byte_is_noticed(source, tmp_path, notes, what):
    """Arrow has no checksum: it would return another text, or read beyond its buffer."""
    table = source.open(tmp_path)[:]
    if what == "the number of shards":
        file = tmp_path / "index.json"
        content = file.read_bytes().replace(b'"num_shards": 3', b'"num_shards": 2')
    else:
        (file,) = tmp_path.glob("shard-*-00001.arrow")
        content = bytearray(file.read_bytes())
        content[content.index(b"1-01-1") - (0 if what == "a text" else 60)] ^= 4
    assert content != file.read_bytes()
    file.write_bytes(content)
    assert source.open(tmp_path)[:] == table
    assert source.made == [0, 1, 2] + ([0, 1, 2] if file.suffix == ".json" else [1])
    assert ("whose index.json is damaged or of an earlier version" in notes.text) == (file.suffix == ".json")


def test_another_source_rebuilds_it_and_is_logged(source, tmp_path, notes):
    source.open(tmp_path)
    (tmp_path / "mine.txt").write_text("stays")
    source.open(tmp_path, "z")
    assert source.made == [0, 1, 2] * 2
    assert (tmp_path / "mine.txt").read_text() == "stays"
    assert f"Test: rebuilding the index in {tmp_path}, which was made from another table." in notes.messages
    (tmp_path / "index.json").write_text("{")
    source.open(tmp_path, "z")
    assert source.made == [0, 1, 2] * 3
    assert json.loads((tmp_path / "index.json").read_text())["num_shards"] == 3


def test_a_stale_shard_alone_is_made_again(source, tmp_path):
    source.open(tmp_path)
    source.open(tmp_path, is_stale=lambda shard: shard[0]["id"] == "1-0")
    assert source.made == [0, 1, 2, 1]


def test_a_pickled_index_is_the_names_of_its_files(source, tmp_path, monkeypatch):
    rows = source.rows
    monkeypatch.setattr(source, "rows", lambda shard: [row | {"names": ["long"] * 5000} for row in rows(shard)])
    table = source.open(tmp_path)
    content = pickle.dumps(table)
    assert len(content) < 10_000 < sum(file.stat().st_size for file in tmp_path.glob("*.arrow"))
    assert pickle.loads(content)[:] == table[:]


def test_a_folder_that_cannot_be_written_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"index of Test cannot be written to .*file/index.*set `data\.init_args\.index`"
    ):
        source.open(tmp_path / "file" / "index")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(source, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match=r"cannot be written to .*\(Permission denied\)"):
        source.open(tmp_path / "index")


def test_progress_is_shown_now_and_then(source, tmp_path, monkeypatch, notes):
    monkeypatch.setattr(index, "_PROGRESS_SECONDS", -1.0)
    source.open(tmp_path)
    assert "Test: 2 of 3 shards after 0 s" in notes.messages


def test_two_processes_with_different_sources_in_one_folder(source, tmp_path, monkeypatch):
    """The second one starts while the first one builds: neither takes a shard of the other, then or later."""
    other, rows = Source(), source.rows
    other.rows = lambda shard: [{"id": f"other {shard}-{row}", "names": []} for row in range(2)]

    def interrupted(shard):
        if shard == 1 and not source.made[1:]:
            other.open(tmp_path, "z")
        return rows(shard)

    monkeypatch.setattr(source, "rows", interrupted)
    mine = ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert source.open(tmp_path)["id"][:] == mine
    assert other.open(tmp_path, "z")["id"][:] == [f"other {name}" for name in mine]
    assert source.open(tmp_path)["id"][:] == mine


def test_a_shard_of_another_index_under_this_name_is_made_again(source, tmp_path):
    source.open(tmp_path / "a")
    other = Source()
    other.open(tmp_path / "b", "z")
    for mine, theirs in zip(
        sorted((tmp_path / "a").glob("*.arrow")), sorted((tmp_path / "b").glob("*.arrow")), strict=True
    ):
        assert mine.name != theirs.name
        theirs.replace(mine)
    source.open(tmp_path / "a")
    assert source.made == [0, 1, 2] * 2
