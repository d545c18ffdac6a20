import json
import os

import pytest
import torch

from mrg.files import WriteError
from mrg.run.checkpoint_file import DamagedCheckpointError
from mrg.run.checkpoints import CheckpointFolder, checkpoint_name


def write(folder, number, best="", validated=True):
    name = checkpoint_name(number, validated)
    folder.save(name, {"weights": torch.full((50,), float(number))}, best if best else "")
    return name


def value(path):
    return float(torch.load(path, weights_only=True)["weights"][0])


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints", keep=2)


def test_the_last_and_all_that_they_name_as_best_are_kept(folder):
    first = write(folder, 1, "round-00000001.ckpt")
    for number in (2, 3):
        write(folder, number, first)
    assert folder.names() == ["round-00000003.ckpt", "round-00000002.ckpt", first]
    fourth = write(folder, 4, "round-00000004.ckpt")
    # Should the fourth prove damaged, a run goes on from the third, whose best one is the first.
    assert folder.names() == [fourth, "round-00000003.ckpt", first]
    write(folder, 5, fourth)
    assert folder.names() == ["round-00000005.ckpt", fourth]
    assert set(folder.manifest()) == set(folder.names())
    assert value(folder.path / "best.ckpt") == 4
    assert (folder.path / "best.ckpt").samefile(folder.path / fourth)


def test_after_a_rounds_validation_is_newer_than_before(folder):
    before, after = write(folder, 10, validated=False), write(folder, 10)
    assert folder.names() == [after, before]
    assert write(folder, 11, validated=False) == folder.names()[0]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("manifest", ["whole", "lost", "damaged", "incomplete"])
@pytest.mark.parametrize("damage", [flip, tear, empty])
def test_damage_is_named_and_the_one_before_is_used(folder, damage, manifest):
    write(folder, 1)
    write(folder, 2)
    damage(folder.path / "round-00000002.ckpt")
    if manifest != "whole":
        texts = {"lost": "[]", "damaged": '{"round-0000', "incomplete": '{"round-00000002.ckpt": {"best": ""}}'}
        (folder.path / "manifest.json").write_text(texts[manifest])
    path, lines = folder.newest()
    assert path == folder.path / "round-00000001.ckpt"
    assert len(lines) == 1
    assert f"{folder.path / 'round-00000002.ckpt'} is damaged" in lines[0]
    damage(path)
    path, lines = folder.newest()
    assert (path, len(lines)) == (None, 2)


def test_best_is_checked_like_the_round_that_it_is(folder):
    write(folder, 1, "round-00000001.ckpt")
    folder.check(folder.path / "best.ckpt")
    flip(folder.path / "best.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"best.ckpt is damaged: its SHA-256 differs"):
        folder.check(folder.path / "best.ckpt")


def test_without_hard_links_best_is_a_copy(folder, monkeypatch):
    def refuse(*args):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(folder, 1, "round-00000001.ckpt")
    write(folder, 2, "round-00000002.ckpt")
    assert value(folder.path / "best.ckpt") == 2
    folder.check(folder.path / "best.ckpt")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_full_disk_leaves_what_was_there(folder, monkeypatch, call):
    write(folder, 1, "round-00000001.ckpt")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    from mrg.run import checkpoints as checkpoint_folder

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(checkpoint_folder._Hashing, "__init__", limited(checkpoint_folder._Hashing.__init__))
    with pytest.raises(WriteError, match=r"round-00000002.ckpt cannot be written \(No space left on device\)"):
        write(folder, 2)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def limited(init):
    """A file that takes no byte more after the first few."""

    def __init__(self, file):  # noqa: N807
        init(self, file)
        taken = []

        class Disk:
            def write(self, data):
                taken.append(len(data))
                if sum(taken) > 100:
                    raise OSError(28, "No space left on device")

        self.file = Disk()

    return __init__


def test_what_a_crash_left_is_adopted_or_removed(folder):
    write(folder, 1, "round-00000001.ckpt")
    write(folder, 2, "round-00000001.ckpt")
    (folder.path / "manifest.json").unlink()
    torn = folder.path / ".round-00000003.ckpt.123.tmp"
    torn.write_bytes(b"half")
    other = folder.path / "notes.txt"
    other.write_text("mine")
    folder.adopt("round-00000002.ckpt", "round-00000001.ckpt")
    assert folder.remove_after("round-00000002.ckpt") == []
    assert not torn.exists()
    assert (
        json.loads((folder.path / "manifest.json").read_text())["round-00000002.ckpt"]["best"] == "round-00000001.ckpt"
    )
    write(folder, 3, "round-00000001.ckpt")
    assert folder.names() == ["round-00000003.ckpt", "round-00000002.ckpt", "round-00000001.ckpt"]
    assert folder.remove_after("round-00000002.ckpt") == ["round-00000003.ckpt"]
    assert set(folder.manifest()) == {"round-00000001.ckpt", "round-00000002.ckpt"}
    assert other.read_text() == "mine"


def test_what_was_not_noted_is_checked_by_its_own_sums(folder):
    """As after a crash between a checkpoint's last byte and the manifest."""
    write(folder, 1)
    entries = (folder.path / "manifest.json").read_bytes()
    write(folder, 2)
    (folder.path / "manifest.json").write_bytes(entries)
    assert folder.newest() == (folder.path / "round-00000002.ckpt", [])
    tear(folder.path / "round-00000002.ckpt")
    path, lines = folder.newest()
    assert path == folder.path / "round-00000001.ckpt"
    assert "is damaged or no checkpoint" in lines[0]


def write_parts(folder, number, best=""):
    """A checkpoint of one file per rank."""
    name = checkpoint_name(number)
    part = folder.unfinished(name)
    part.mkdir(parents=True)
    torch.save({"number": number}, part / "meta.pt")
    (part / "__0_0.distcp").write_bytes(bytes([number]) * 100)
    folder.take(name, best or name)
    return name


def test_a_folder_of_one_file_per_rank_is_a_checkpoint_too(folder):
    first = write_parts(folder, 1)
    for number in (2, 3):
        write_parts(folder, number, first)
    assert folder.names() == ["round-00000003.ckpt", "round-00000002.ckpt", first]
    assert (folder.path / "best.ckpt").resolve() == (folder.path / first).resolve()
    folder.check(folder.path / "best.ckpt")
    flip(folder.path / "round-00000003.ckpt" / "__0_0.distcp")
    path, lines = folder.newest()
    assert path == folder.path / "round-00000002.ckpt"
    assert "round-00000003.ckpt is damaged" in lines[0]
    folder.remove_after("round-00000002.ckpt")
    write_parts(folder, 3, "round-00000003.ckpt")
    assert folder.newest() == (folder.path / "round-00000003.ckpt", [])
    assert folder.names() == ["round-00000003.ckpt", "round-00000002.ckpt", first]
    folder.clear()
    assert list(folder.path.iterdir()) == []
