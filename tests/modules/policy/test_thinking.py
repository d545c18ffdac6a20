"""Chat templates of Thinking models, which open the think section in the prompt, in every family."""

import pytest
from transformers import AutoTokenizer

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.load import load_policy
from tests.families import QWEN
from tests.family_checkpoints import BUILDERS, save_checkpoint

OPENING = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"


def set_template(folder, change):
    """Change the chat template of a checkpoint, wherever it is."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = change(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)


def prompts(folder, studies):
    """Prompts of the studies, and the whole chat with an answer, by mrg's processor of a checkpoint."""
    processor = load_policy(str(folder)).processor
    collator = StudyCollator(processor, "Findings:")
    contents = [collator.content(study) for study in studies]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "<think>Nothing.</think><report>x</report>"}]}
    chats = [[{"role": "user", "content": content}, answer] for content in contents]
    whole = [processor.apply_chat_template(chat, tokenize=False) for chat in chats]
    return [collator.prompt_text(content) for content in contents], whole


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("kind", [*QWEN, *sorted(BUILDERS)])
def test_the_think_section_opens_in_the_completion(studies, tmp_path, kind, ending):
    folder = save_checkpoint(kind, tmp_path / "policy")
    set_template(folder, lambda template: "\n  {% if true %}{% endif %}\n" + template + ending)
    expected = prompts(folder, studies[:2])
    assert "<think>" not in expected[0][0]
    set_template(folder, lambda template: template.removesuffix(ending) + OPENING + ending)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hello."}]}]
    opened = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert opened.rstrip().endswith("<think>")
    assert prompts(folder, studies[:2]) == expected
    # What is saved renders the prompt that the policy was trained with.
    load_policy(folder).save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = saved.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == opened.rstrip().removesuffix("<think>")
    assert prompts(tmp_path / "saved", studies[:2]) == prompts(folder, studies[:2])
