"""Shipped configurations: found by name from any folder, listed, copied; in the wheel as in the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mrg.cli import main
from mrg.commands.configs import CONFIGS, names, purpose, resolve, resolve_all

ROOT = Path(__file__).parents[2]


def test_every_configuration_has_a_name_and_a_purpose():
    assert {"iu", "demo", "iu_sft", "memory/qlora", "data/table"} <= set(names())
    assert len(names()) == len(list((ROOT / "configs").rglob("*.yaml")))
    for name in names():
        assert 10 < len(purpose(name)) < 200, name
    assert names().index("mimic") < names().index("data/table")


@pytest.mark.parametrize("word", ["iu", "iu.yaml", "configs/iu.yaml"])
def test_a_name_is_found_from_any_folder(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(word) == str(CONFIGS / "iu.yaml")
    Path("iu").write_text("name: mine")
    assert resolve("iu") == "iu"  # the user's own file is first


def test_options_are_resolved_in_each_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(CONFIGS / "memory" / "qlora.yaml")
    assert resolve_all(["fit", "--config", "memory/qlora", "-c", "iu", "--config=iu_sft", "--name", "iu"]) == [
        *("fit", "--config", path, "-c", str(CONFIGS / "iu.yaml"), f"--config={CONFIGS / 'iu_sft.yaml'}"),
        *("--name", "iu"),
    ]


def test_an_unknown_name_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["size", "--config", "iu_sfd"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "got 'iu_sfd'; did you mean 'iu_sft'?" in error
    assert len(error.splitlines()) == 1


def test_list_and_copy(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("iu ") and "MRG-R1 on IU X-Ray" in line for line in lines)
    main(["configs", "--copy", "iu", "memory/qlora"])
    assert capsys.readouterr().out.split() == ["iu.yaml", "qlora.yaml"]
    assert Path("iu.yaml").read_bytes() == (CONFIGS / "iu.yaml").read_bytes()
    with pytest.raises(SystemExit):
        main(["configs", "--copy", "iu"])
    assert "would replace iu.yaml" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    script = f"set -o pipefail; {sys.executable} -m mrg configs | true"
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 141)  # 0 if everything fitted into the pipe
    assert result.stderr == ""


@pytest.mark.slow
def test_the_wheel_has_them(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("mrg-*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("mrg/configs/")}
    assert shipped == {f"mrg/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
