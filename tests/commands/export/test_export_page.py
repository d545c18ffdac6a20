"""The snippets of docs/export.md, as they are shown, on an exported tiny policy; vLLM's is in tests/servers."""

import re
from pathlib import Path

import pytest
import torch

from mrg.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def snippet(section, **replaced):
    """The Python block of a section; what a reader fills in is replaced."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    for name, value in replaced.items():
        assert name in block
        block = block.replace(name, value)
    return block


@pytest.fixture(scope="module")
def exported(home):
    """The folder in which the snippets run."""
    for name, adapter in (("iu", "false"), ("iu-adapter", "true")):
        config, output = home / "runs" / "demo" / "config.yaml", home / "exported" / name
        main(["export", f"--config={config}", f"--output={output}", f"--adapter={adapter}"])
    (home / "frontal.png").write_bytes((home / "0.png").read_bytes())
    return home


def run(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(block, "export.md", "exec"), names)
    return names


def test_transformers(exported, monkeypatch):
    names = run(snippet("transformers"), exported, monkeypatch)
    completion = names["complete"](["frontal.png"])
    assert completion.startswith("<report>")
    assert names["report"] in completion
    assert len(names["report"].split()) > 5


def test_peft_merges_into_what_export_writes_merged(exported, monkeypatch):
    from transformers import AutoModelForImageTextToText

    names = run(snippet("peft", BASE="runs/demo_sft/policy"), exported, monkeypatch)
    expected = AutoModelForImageTextToText.from_pretrained("exported/iu").state_dict()
    weights = names["merged"].state_dict()
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_trl_makes_a_step(exported, monkeypatch):
    pytest.importorskip("trl", minversion="1.16")
    quick = "report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, logging_steps=1, temperature=0.1"
    cpu = {"report_to=[]": quick, "max_completion_length=256": "max_completion_length=80"}
    names = run(snippet("TRL", PROMPT="Report:", **cpu), exported, monkeypatch)
    (log, *_) = names["trainer"].state.log_history
    assert log["rewards/format/mean"] > 0
    assert torch.isfinite(torch.tensor([log["reward"], log["loss"]])).all()
