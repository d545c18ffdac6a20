"""One line for errors of ours, wherever they were raised; a traceback for code that is not ours."""

import importlib
import pkgutil
import traceback

import pytest
from torch.utils.data import DataLoader

import mrg
from mrg.errors import ExtensionError, MrgError, RunError, UserError, find_ours, one_line, print_error


class Failing:
    """A data set whose items cannot be read."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("Image a.png is truncated:\n  copy it again.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_a_worker_is_one_line(num_workers):
    with pytest.raises(UserError) as caught:
        next(iter(DataLoader(Failing(), num_workers=num_workers)))
    assert one_line(caught.value) == "Image a.png is truncated: copy it again."


def subclasses(kind):
    return [kind, *(sub for child in kind.__subclasses__() for sub in subclasses(child))]


def test_every_error_of_ours_can_be_raised_again_from_its_text():
    """A DataLoader makes the error of a worker again from one string, and otherwise loses its type."""
    for module in pkgutil.walk_packages(mrg.__path__, "mrg."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = [kind for kind in subclasses(MrgError) if kind.__module__.startswith("mrg.")]
    assert len(ours) > 10
    for kind in ours:
        text = f"Caught {kind.__name__} in DataLoader worker process 0.\n{kind.__module__}.{kind.__qualname__}: no good"
        assert one_line(kind(text)) == "no good"


def test_wrapped_and_foreign_errors():
    wrapped = ValueError("outer")
    wrapped.__cause__ = RunError("full disk")
    assert isinstance(find_ours(wrapped), RunError)
    assert one_line(wrapped) == "full disk"
    assert one_line(KeyError("a")) is None


def broken():
    raise KeyError("missing")


def failing(kind):
    try:
        broken()
    except KeyError as error:
        raise kind("it failed") from error


@pytest.mark.parametrize(
    ("kind", "with_traceback", "expected"),
    [
        (ExtensionError, False, ("KeyError: 'missing'", "in broken", "mrg: it failed")),
        (UserError, False, ("mrg: it failed",)),
        (UserError, True, ("KeyError: 'missing'", "in broken", "UserError: it failed", "mrg: it failed")),
    ],
)
def test_which_errors_have_a_traceback(capsys, kind, with_traceback, expected):
    with pytest.raises(kind) as caught:
        failing(kind)
    print_error(caught.value, with_traceback)
    text = capsys.readouterr().err
    assert all(part in text for part in expected), text
    assert ("Traceback" in text) == (len(expected) > 1)
    assert text.splitlines()[-1] == "mrg: it failed"


def test_a_foreign_error_has_its_traceback_only(capsys):
    try:
        broken()
    except KeyError as error:
        print_error(error)
        assert capsys.readouterr().err == traceback.format_exc()
