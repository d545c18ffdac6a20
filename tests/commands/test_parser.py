"""Errors of three lines that name the command as it was typed, class names without their path, and keys that moved."""

import contextlib
import io
import subprocess
import sys

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from mrg.cli import main
from mrg.commands.parser import load_yaml
from tests.command_line import CONFIGS, failure


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export", "size"])
def test_the_command_is_named_as_it_is_typed(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    code, text = failure(capsys, [command, f"--config={tmp_path / 'missing.yaml'}"])
    usage, tip, error = text.splitlines()
    assert code == 2
    run = "" if command in ("fit", "size") else "[RUN] "
    assert usage == f"usage: python -m mrg {command} {run}[--config FILE] [--KEY VALUE ...]"
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
                   "export, demo, compare, gallery, page, ablate, data, audit, size, configs, runs."),
        (["data", "check", IU, "--data.init_args.roott=3"], "Option 'roott' is not accepted; did you mean 'root'?"),
        (["size", IU, "--model.init_args.polcy=x"], "Option 'polcy' is not accepted; did you mean 'policy'?"),
        (["fit", IU, "--data.init_args.batchsize=3"], "Option 'batchsize' is not accepted; did you mean 'batch_size'?"),
        (["fit", IU, "--data.init_args.zzzzz=3"], "IUXRayDataModule: Option 'zzzzz' is not accepted"),
        (["fit", IU, "--trainer.maxsteps=3"], "--trainer.maxsteps=3; did you mean 'trainer.max_steps'?"),
        (["fit", IU, "--nmae=3"], "unrecognized arguments: --nmae=3; did you mean 'name'?"),
        (["predict", IU, "--image", "a.png"], "unrecognized arguments: --image a.png; did you mean 'images'?"),
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


def test_fit_without_a_configuration_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py"])
    code, text = failure(capsys, ["fit", "--name=x"])
    usage, _, error = text.splitlines()
    assert code == 2
    assert usage == "usage: python -m mrg fit [--config FILE] [--KEY VALUE ...]"
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


def printed_config(*argv):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", f"--config={CONFIGS / 'iu.yaml'}", *argv, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(out.getvalue())


@pytest.mark.parametrize(
    ("part", "name", "path"),
    [
        ("model", "GRPOModule", "mrg.modules.grpo.GRPOModule"),
        ("model", "SFTModule", "mrg.modules.sft.SFTModule"),
        ("data", "IUXRayDataModule", "mrg.datamodules.iu.IUXRayDataModule"),
        ("data", "MIMICDataModule", "mrg.datamodules.mimic.MIMICDataModule"),
        ("data", "TableDataModule", "mrg.datamodules.table.TableDataModule"),
        ("data", "DemoDataModule", "mrg.datamodules.demo.DemoDataModule"),
    ],
)
def test_a_class_is_named_without_its_path(tmp_path, part, name, path):
    """In a file, where `init_args` follow, and on the command line; what is saved has the path."""
    (tmp_path / "short.yaml").write_text(f"{part}: {{class_path: {name}}}\n")
    for given in (f"--config={tmp_path / 'short.yaml'}", f"--{part}={name}"):
        assert printed_config(given)[part]["class_path"] == path


def test_a_labeler_is_named_without_its_path():
    labeler = printed_config("--model.init_args.labeler=RulesLabeler")["model"]["init_args"]["labeler"]
    assert labeler["class_path"] == "mrg.metrics.RulesLabeler"


def test_a_name_alone_in_a_file_in_a_fresh_process(tmp_path):
    """Nothing has imported the classes before."""
    (tmp_path / "run.yaml").write_text("model: GRPOModule\ndata: DemoDataModule\n")
    command = [sys.executable, "-m", "mrg", "fit", f"--config={tmp_path / 'run.yaml'}", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["model"]["class_path"] == "mrg.modules.grpo.GRPOModule"
    assert config["data"]["class_path"] == "mrg.datamodules.demo.DemoDataModule"


@pytest.mark.parametrize(
    ("option", "end"),
    [
        ("--model=GRPOModul", "Parser key \"model\": There is no class GRPOModul; did you mean 'GRPOModule'?"),
        ("--data=mrg.datamodules.images.ImagesDataModule", "; it is now mrg.datamodules.own_images.ImagesDataModule"),
        ("--model.init_args.lora.rnk=3", "LoRA: Option 'rnk' is not accepted; did you mean 'rank'?"),
        ("--model.init_args.learning_rate=1", "; it is now model.init_args.optimizer.learning_rate"),
        ("--model=mrg.modules.nothing.Thing", "Thing: module 'mrg.modules' has no attribute 'nothing'"),
        ("--keep=0", 'Parser key "keep": Not of type PositiveInt: 0 does not conform to restriction v>0'),
        ("--gallery.images=all", "error: Expected gallery.images to be 'embed', 'link' or 'none', but got 'all'."),
        ("--model.init_args.think=x", "Expected model.init_args.think to be 'required' or 'absent', but got 'x'."),
        ("--model.init_args.lora.rank=x", "error: Expected model.init_args.lora.rank to be int, but got 'x'."),
        ("--model.init_args.loss.advantage_scale=std",
         "model.init_args.loss.advantage_scale to be 'group', 'batch', 'none' or 'auto', but got 'std'."),
        ("--model.init_args.rollout.servers.correction=x",
         "servers.correction to be 'truncate', 'mask', 'none' or 'sequence_mask', but got 'x'."),
        ("--data.init_args.max_images=x", "error: Expected data.init_args.max_images to be int or null, but got 'x'."),
        ("--trainer.max_steps=x", "error: Expected trainer.max_steps to be int, but got 'x'."),
    ],
)  # fmt: skip
def test_wrong_names_and_values(capsys, option, end):
    code, text = failure(capsys, ["fit", f"--config={CONFIGS / 'iu.yaml'}", option])
    assert (code, text.splitlines()[-1].endswith(end)) == (2, True), text


@pytest.mark.parametrize("name", ["_parse_ckpt_path", "_run_subcommand"])
def test_lightning_has_the_private_methods_that_are_overridden(name):
    assert callable(getattr(LightningCLI, name, None)), (
        f"LightningCLI has no {name} any more: adapt CommandLine in mrg/commands/parser.py before raising the bound in "
        "pyproject.toml."
    )


def test_errors_of_jsonargparse_still_have_causes_and_quotes(monkeypatch):
    """What `Parser.error` reads: the key of an unknown option in quotes, and a chain of causes around a class."""
    from jsonargparse import ArgumentParser

    from mrg.commands import parser

    given = []
    monkeypatch.setattr(parser.Parser, "error", lambda self, message, ex=None: given.append((message, ex)) or exit(2))
    with pytest.raises(SystemExit):
        main(["fit", f"--config={CONFIGS / 'iu.yaml'}", "--data.init_args.roott=3"])
    ((message, error), *_) = given
    assert isinstance(error, KeyError), "jsonargparse reports an unknown key no longer by a KeyError: see Parser.error"
    assert message.split("'")[-2] == "roott", "jsonargparse no longer quotes an unknown key: see Parser.error"
    assert hasattr(ArgumentParser, "add_subcommands")
    assert hasattr(ArgumentParser, "get_defaults")


@pytest.mark.parametrize("command", [["fit"], ["data", "check"]])
def test_a_repeated_key_is_an_error(tmp_path, capsys, command):
    """PyYAML takes the last of two learning rates without a word."""
    file = tmp_path / "dup.yaml"
    file.write_text(
        "name: dup\nmodel:\n  class_path: mrg.modules.sft.SFTModule\n  init_args:\n    optimizer:\n"
        "      learning_rate: 1.0e-5\n      weight_decay: 0.0\n      learning_rate: 3.0e-3\n"
        "data:\n  class_path: mrg.datamodules.demo.DemoDataModule\n"
    )
    code, text = failure(capsys, [*command, f"--config={file}"])
    assert code == 2
    assert "The key 'learning_rate' in line 6 is repeated: remove it or line 8." in text.splitlines()[-1]


@pytest.mark.parametrize("command", [["fit"], ["test"], ["data", "check"], ["ablate"], ["size"], ["audit"]])
def test_a_file_in_another_encoding_is_one_line(tmp_path, capsys, command):
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: M\xfcnchen\n".encode("latin-1"))
    code, text = failure(capsys, [*command, f"--config={file}"])
    assert (code, str(file) in text, "byte 7" in text or "position 7" in text) == (2, True, True)
    assert len(text.splitlines()) == 1


def test_equal_keys_of_different_mappings_are_no_repetition():
    text = "a: {b: 1}\nc: [{b: 2}, {b: 3}]\nb: 4\n"
    assert load_yaml(text) == {"a": {"b": 1}, "c": [{"b": 2}, {"b": 3}], "b": 4}
    with pytest.raises(yaml.YAMLError, match="The key 'b' in line 1 is repeated: remove it or line 2"):
        load_yaml("a: [{b: 1,\n b: 2}]")
