import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from mrg.cli import main
from mrg.errors import UserError
from mrg.modules.sft import SFTModule
from mrg.run.folder import check_inside, check_not_moved, make_run_folder
from mrg.run.lock import LOCK, is_locked, lock
from tests.command_line import failure, sft

HOLD = """
import sys
from pathlib import Path
from mrg.run.lock import lock
held = lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path, iu_tree):
    main(["fit", *sft(tmp_path)])
    return tmp_path / "runs" / "iu_tiny_sft"


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_processes_do_not_train_in_one_folder(tmp_path, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        for more in ("--resume=auto", "--overwrite=true"):
            code, message = failure(capsys, ["fit", *sft(tmp_path, more)])
            assert code == 2
            assert message == (
                f"mrg: Another process is training in {run}: wait until it has finished, or choose another --name."
            )
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    finally:
        other.kill()
        other.wait()
    main(["fit", *sft(tmp_path, "--resume=auto", "--trainer.max_steps=3")])  # a dead process holds nothing


def test_one_process_may_train_there_again(tmp_path):
    first = lock(tmp_path)
    second = lock(tmp_path)
    assert (tmp_path / LOCK).is_file()
    assert is_locked(tmp_path / "none") is None
    for file in (first, second):
        if file is not None:
            file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
@pytest.mark.parametrize(("shared", "mode"), [(False, 0o700), (True, 0o750)])
def test_only_its_owner_may_enter_a_new_run(tmp_path, shared, mode):
    run = tmp_path / "runs" / "a"
    before = os.umask(0o027)
    try:
        make_run_folder(run, shared)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (run, run.parent)] == [mode, 0o750]
    run.chmod(0o755)
    make_run_folder(run, shared)
    assert stat.S_IMODE(run.stat().st_mode) == 0o755  # what its owner has decided stays


def test_a_name_does_not_leave_the_folder_of_runs(tmp_path, iu_tree, capsys):
    for option, outer in (("--name", "--runs"), ("--into", "the run's folder")):
        for value in ("../x", str(tmp_path / "x"), "a/../../x", "."):
            code, text = failure(capsys, ["test" if option == "--into" else "fit", *sft(tmp_path, f"{option}={value}")])
            assert (code, text) == (
                2,
                f"mrg: Expected {option} to be the name of a folder in {outer}, but got {value!r}.",
            )
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "runs").exists()
    check_inside("seed0/arm..1", "--name", "--runs")


def test_a_run_without_a_checkpoint_does_not_block_the_next_start(tmp_path, iu_tree, capsys, monkeypatch):
    run = tmp_path / "runs" / "iu_tiny_sft"

    def step(module, batch, index):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(SFTModule, "training_step", step)
        with pytest.raises(RuntimeError, match="out of memory"):
            main(["fit", *sft(tmp_path)])
    assert (run / "config.yaml").is_file()
    capsys.readouterr()
    main(["fit", *sft(tmp_path)])
    line = f"The run in {run} ended before its first checkpoint: it starts from the beginning."
    assert line in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    code, text = failure(capsys, ["fit", *sft(tmp_path)])
    assert (code, "already contains a run" in text) == (2, True)


def test_a_moved_run_says_where_it_is(tmp_path, run, capsys):
    for how, place in ((shutil.copytree, run.with_name("copy")), (shutil.move, tmp_path / "else" / "moved")):
        place.parent.mkdir(exist_ok=True)
        how(run, place)
        config = f"--config={place / 'config.yaml'}"
        for command in (["fit", config, "--resume=auto"], ["test", config]):
            code, message = failure(capsys, command)
            assert code == 2
            assert (
                f"names the run folder {run}, but lies in another one, probably moved or copied: add "
                f"--runs {place.parent} --name {place.name}." in message
            )
        main(["test", config, f"--runs={place.parent}", f"--name={place.name}"])
        assert (place / "results.json").is_file()
    assert not run.exists()


def test_a_configuration_may_serve_another_run(tmp_path):
    own = tmp_path / "runs" / "a"
    (own / "checkpoints").mkdir(parents=True)
    (own / "config.yaml").write_text(f"runs: {own.parent}\nname: a\n")
    check_not_moved([own / "config.yaml"], own.with_name("b"))
    check_not_moved([own / "config.yaml"], own)
    (own / "config.yaml").write_text(f"runs: {own.parent}\nname: b\n")
    with pytest.raises(UserError, match="--name a"):
        check_not_moved([own / "config.yaml"], own.with_name("b"))


REFUSED = """
import sys
from mrg.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_refused_run_leaves_no_folder(tmp_path, iu_tree):
    argv = ["fit", *sft(tmp_path, "--data.init_args.root=/no/such/folder")]
    done = subprocess.run([sys.executable, "-c", REFUSED, *argv], capture_output=True, text=True)
    assert (done.returncode, "/no/such/folder" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "runs" / "iu_tiny_sft").exists()
    (tmp_path / "runs" / "iu_tiny_sft").mkdir()
    (tmp_path / "runs" / "iu_tiny_sft" / "notes.txt").write_text("mine")
    subprocess.run([sys.executable, "-c", REFUSED, *argv], capture_output=True)
    assert (tmp_path / "runs" / "iu_tiny_sft" / "notes.txt").read_text() == "mine"
