"""What `--help` prints of every command: a text for each option, the choices, and no reference in their place."""

import contextlib
import re

import pytest

import mrg.metrics.__main__ as metrics
from mrg.cli import OWN, main
from mrg.commands import LIGHTNING

REFERENCE = re.compile(r"\b[Ss]ee (`|docs/|the |[A-Z])")
"""A text that sends the reader elsewhere."""


def printed(capsys, *words, run=main):
    """What a command prints."""
    with contextlib.suppress(SystemExit):
        run(list(words))
    text, errors = capsys.readouterr()
    assert "usage: " in text, errors
    return text


def options(text):
    """Option -> its text, without the type and the default that are generated."""
    column = len(re.search(r"^  -h, --help +(?=[Ss]how)", text, re.MULTILINE)[0])
    found = {}
    for entry in re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]:
        first, *rest = entry.partition("\n\n")[0].splitlines()
        beside = first[column - 2 :] if first[column - 4 : column - 2] == "  " else ""
        whole = " ".join([beside, *(line[column:] for line in rest if line.startswith(" " * column))])
        found[entry.split()[0].rstrip(",")] = re.sub(r"\((type|default|required).*", "", whole).strip()
    return found


def check(text):
    assert not REFERENCE.search(" ".join(text.split())), REFERENCE.search(" ".join(text.split()))
    assert [name for name, what in options(text).items() if not what] == []


@pytest.mark.parametrize("command", ["fit", "predict", *sorted({*OWN} - {"data"})])
def test_every_option_has_a_text_that_stands_alone(capsys, command):
    check(printed(capsys, command, "--help"))


def test_texts_are_read_from_the_help(capsys):
    """The check above sees the texts, and an option without one."""
    found = options(printed(capsys, "runs", "--help"))
    assert found == {"-h": "show this help message and exit", "--runs": "the same, as for the other commands"}
    assert options("  -h, --help  show\n  --a A       (type: int)\n  --bbbbbbbb B\n              text\n")["--a"] == ""


def test_commands_without_options_and_the_list_of_commands(capsys):
    text = printed(capsys, "--help")
    for command in (*LIGHTNING, *OWN):
        assert re.search(rf"^  {command} ", text, re.MULTILINE), command
    for words in (("data", "--help"), ("page", "--help")):
        assert not REFERENCE.search(printed(capsys, *words))
    check(printed(capsys, "data", "check", "--help"))
    check(printed(capsys, "--help", run=metrics.main))


def test_choices_of_a_model_and_of_data_are_listed(capsys):
    text = printed(capsys, "fit", "--model.help", "GRPOModule")
    assert not REFERENCE.search(" ".join(text.split()))
    assert "--model.loss.type {grpo,bnpo,dr_grpo,dapo,gspo,cispo,sapo}" in text
    assert "--model.kl.estimator {k1,k2,k3}" in text
    assert '`"gspo"` takes one ratio per completion' in " ".join(text.split())
    text = printed(capsys, "fit", "--data.help", "TableDataModule")
    assert not REFERENCE.search(" ".join(text.split()))
    assert "--data.on_error {raise,skip}" in text
