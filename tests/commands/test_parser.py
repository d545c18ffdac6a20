"""The command that an error of three lines names is the one that was typed."""

import pytest

from mrg.cli import main
from tests.test_cli import CONFIGS, failure


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


IU = "--config=configs/iu.yaml"


@pytest.mark.parametrize(
    ("argv", "end"),
    [
        (["tets"], "mrg: There is no command 'tets'; did you mean 'test'? Commands: fit, validate, test, predict, "
                   "export, demo, compare, page, ablate, data, size."),
        (["data", "check", IU, "--data.init_args.roott=3"], "Option 'roott' is not accepted; did you mean 'root'?"),
        (["size", IU, "--model.init_args.polcy=x"], "Option 'polcy' is not accepted; did you mean 'policy'?"),
        (["fit", IU, "--data.init_args.batchsize=3"], "Option 'batchsize' is not accepted; did you mean 'batch_size'?"),
        (["fit", IU, "--data.init_args.zzzzz=3"], "IUXRayDataModule: Option 'zzzzz' is not accepted"),
        (["fit", IU, "--trainer.maxsteps=3"], "--trainer.maxsteps=3; did you mean 'trainer.max_steps'?"),
        (["fit", IU, "--nmae=3"], "unrecognized arguments: --nmae=3; did you mean 'name'?"),
        (["fit", IU, "--config=mine.yaml"], "does not accept option 'modle.init_args.policy'; did you mean 'model'?"),
    ],
)  # fmt: skip
def test_a_key_that_is_not_known_comes_with_the_nearest(tmp_path, monkeypatch, capsys, argv, end):
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "mine.yaml").write_text("modle: {init_args: {policy: tiny}}\n")
    monkeypatch.chdir(tmp_path)
    code, text = failure(capsys, argv)
    assert code == 2
    assert text.splitlines()[-1].endswith(end), text


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_command_without_a_configuration_says_so(monkeypatch, capsys, command):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    code, text = failure(capsys, [command, "--name=x"])
    usage, _, error = text.splitlines()
    assert code == 2
    assert usage == f"usage: python -m mrg {command} [--config FILE] [--KEY VALUE ...]"
    assert error.endswith("are required: data, model; name a configuration, such as --config configs/iu.yaml")


def test_help_of_predict_lists_what_belongs_to_images_and_whole_sentences(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert all(option in text for option in ("--images FILE", "--as_one_study", "--indication TEXT", "--output FILE"))
    assert "Write reports without scoring them: for the test split, or for your own images. Every key below" in text
    with pytest.raises(SystemExit):
        main(["test", "--help"])
    assert "--images" not in capsys.readouterr().out
