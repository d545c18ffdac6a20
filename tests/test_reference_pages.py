"""The reference of settings: every setting has its choices, its default and a description that stands alone."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mrg.errors import UserError

pytest.importorskip("mkdocs")
FILE = Path(__file__).parents[1] / "docs" / "reference_pages.py"


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("reference_pages", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference_pages"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["reference_pages"]


def settings(pages):
    return {
        (key, setting.name): setting
        for groups in pages.SECTIONS.values()
        for key, path in groups.items()
        for setting in pages.settings_of(pages.load(path))
    }


def test_descriptions_say_it_and_do_not_refer_elsewhere(pages):
    for key, setting in settings(pages).items():
        assert len(setting.text.split()) > 1 or setting.text == "Degrees.", key
        assert not re.search(r"\b[Ss]ee `", setting.text), (key, setting.text)


def test_choices_defaults_and_types(pages):
    found = settings(pages)
    kl = found["model.init_args.kl", "estimator"]
    assert (kl.choices, kl.default) == ("`k1`, `k2`, `k3`", "k3")
    assert found["model.init_args.loss", "dual_clip"].choices == "float or `null`"
    assert found["model.init_args.tiny", "cnn"].default == "[]"
    assert found["model.init_args of GRPOModule", "loss"].default == "its own defaults"
    assert found["data.init_args of TableDataModule", "columns"].default == ""
    assert found["model.init_args", "gradient_checkpointing"].default == "false"
    run = {setting.name: setting for setting in pages.run_settings()}
    assert run["monitor"].default == "val/mccs"
    assert run["from"].text


def test_an_argument_without_a_description_fails(pages):
    class Bare:
        """Settings.

        Args:
            a: A number.
        """

        def __init__(self, a: int = 1, b: int = 2) -> None:
            raise UserError("not built")

    with pytest.raises(ValueError, match=r"argument b of .*Bare is not described"):
        list(pages.settings_of(Bare))


def test_pages_have_formulas_sources_and_every_name(pages):
    import mrg.metrics

    text = pages.settings_page()
    assert "| `k3` | exp(ref - lp) - (ref - lp) - 1 |" in text
    assert "Shao et al., DeepSeekMath, 2024" in text
    api = pages.metrics_page()
    assert [name for name in mrg.metrics.__all__ if f"### {name}\n" not in api and f"| `{name}` |" not in api] == []
    for path in re.findall(r"\]\(\.\./([^)#]+)\)", text + api):
        assert (FILE.parents[1] / path).is_file(), path
