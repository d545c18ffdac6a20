"""The command that an error of three lines names is the one that was typed."""

import pytest

from tests.test_cli import failure


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export", "size"])
def test_the_command_is_named_as_it_is_typed(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    code, text = failure(capsys, [command, f"--config={tmp_path / 'missing.yaml'}"])
    usage, tip, error = text.splitlines()
    assert code == 2
    assert usage == f"usage: python -m mrg {command} [--config FILE] [--KEY VALUE ...]"
    assert tip == f"tip: For details of accepted options run: python -m mrg {command} --help"
    assert error.startswith(f"error: Parser key \"config\": File does not exist: '{tmp_path / 'missing.yaml'}'")


def test_data_check_names_itself(tmp_path, capsys):
    code, text = failure(capsys, ["data", "check", f"--config={tmp_path / 'missing.yaml'}"])
    assert code == 2
    assert text.splitlines()[1] == "tip: For details of accepted options run: python -m mrg data check --help"
