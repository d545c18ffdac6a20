"""Runs by name, by folder, and by a name that is not quite right."""

import os
import re

import pytest

from mrg.errors import NotFoundError, UserError
from mrg.run.find import all_runs, find_run, path_or_run


def make(folder, mark="config.yaml"):
    folder.mkdir(parents=True)
    (folder / mark).touch()
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("iu_small", "demo-1/sft", "demo-1/grpo", "demo-2/sft"):
        make(tmp_path / "runs" / name)
    (tmp_path / "runs" / "empty").mkdir()
    return (tmp_path / "runs").relative_to(tmp_path)


def test_runs_are_found_at_any_depth_but_not_inside_of_runs(runs):
    make(runs / "iu_small" / "into", "predictions.jsonl")
    make(runs / "damaged", "metrics.csv")
    names = ["damaged", "demo-1/grpo", "demo-1/sft", "demo-2/sft", "iu_small"]
    assert [path.relative_to(runs).as_posix() for path in all_runs(runs)] == names
    assert all_runs(runs / "nowhere") == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_hides_no_other(runs):
    (runs / "demo-1").chmod(0)
    try:
        assert len(all_runs(runs)) == 2
    finally:
        (runs / "demo-1").chmod(0o700)


@pytest.mark.parametrize("word", ["iu_small", "iu_small/", "runs/iu_small", "./runs/iu_small"])
def test_a_run_by_name_or_folder(runs, word):
    assert find_run(word, runs) == runs / "iu_small"
    assert find_run(str((runs / "iu_small").resolve()), runs).samefile(runs / "iu_small")


def test_a_run_by_the_last_part_of_its_name(runs):
    assert find_run("grpo", runs) == runs / "demo-1" / "grpo"
    assert find_run("demo-2/sft", runs) == runs / "demo-2" / "sft"
    with pytest.raises(UserError) as caught:
        find_run("sft", runs)
    folders = f"{runs / 'demo-1' / 'sft'}, {runs / 'demo-2' / 'sft'}"
    assert str(caught.value) == f"2 runs are named 'sft': {folders}. Pass one of these folders."


def test_a_folder_here_and_a_run_of_the_same_name(runs, tmp_path):
    make(tmp_path / "iu_small")
    with pytest.raises(UserError, match=r"2 runs are named 'iu_small': \./iu_small, runs/iu_small\."):
        find_run("iu_small", runs)
    assert find_run("./iu_small", runs).samefile(tmp_path / "iu_small")
    (tmp_path / "link").symlink_to(runs / "iu_small")
    assert find_run("link", runs).samefile(runs / "iu_small")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("iu_smal", "There is no run iu_smal in runs; did you mean 'iu_small'? Runs there: demo-1/grpo, demo-1/sft, "),
        ("runs/iu_smll", "did you mean 'iu_small'?"),
        ("demo-1/gpro", "did you mean 'demo-1/grpo'?"),
        ("zzz", "There is no run zzz in runs. Runs there: "),
        ("x" * 300, f"There is no run {'x' * 300} in runs. Runs there: "),
        ("x\0", "There is no run x\0 in runs. Runs there: "),
        ("empty", "There is no run empty in runs. Runs there: "),
        ("../runs/zzz", "There is no run ../runs/zzz in runs"),
        ("iu.yaml", "Expected the name or the folder of a run, but iu.yaml is a file: pass --config iu.yaml."),
        ("runs/demo-1", f"runs/demo-1 is not the folder of a run, but contains 2: {os.path.join('runs', 'demo-1')}"),
    ],
)
def test_a_run_that_does_not_exist(runs, tmp_path, word, message):
    (tmp_path / "iu.yaml").touch()
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        find_run(word, runs)
    assert isinstance(caught.value, NotFoundError) == str(caught.value).startswith("There is no run")


def test_paths_that_exist_are_left_alone(runs, tmp_path):
    (tmp_path / "a.csv").touch()
    assert [path_or_run(word, runs).as_posix() for word in ("a.csv", "runs/empty", "iu_small", "grpo")] == [
        "a.csv", "runs/empty", "runs/iu_small", "runs/demo-1/grpo",
    ]  # fmt: skip
    with pytest.raises(NotFoundError, match="did you mean 'grpo'"):
        path_or_run("grop", runs)
