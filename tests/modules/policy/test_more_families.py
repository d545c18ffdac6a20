"""Gemma 3, LLaVA, InternVL: a prompt shared, repeated, or read by the model's own forward pass gives the same."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.policy import Policy
from mrg.modules.policy.processor import StillInternVLProcessor
from mrg.modules.rollout.sampling import sample
from tests.families import QWEN, family_policy
from tests.family_checkpoints import BUILDERS, WINDOW, save_family
from tests.modules.test_grpo import FixedData, Shortness, trainer
from tests.nested import nested

KINDS = sorted(BUILDERS)
PROMPT = "Findings:"
LENGTHS = torch.tensor([7, 1, 4, 6, 3, 9, 2, 5])


@pytest.fixture(scope="module")
def folders(studies, tmp_path_factory):
    corpus = [study.report for study in studies]
    return {kind: save_family(kind, tmp_path_factory.mktemp(kind), corpus) for kind in KINDS}


@pytest.fixture(scope="module")
def four(studies):
    """Studies of one and of two images, whose prompts differ in length."""
    chosen = sorted(studies, key=lambda study: len(study.views))
    chosen = [*chosen[:2], *chosen[-2:]]
    assert [len(study.views) for study in chosen] == [1, 1, 2, 2]
    return [chosen[2], chosen[0], chosen[3], chosen[1]]


def exact(folder, lora=True, **kwargs):
    """A policy in float64, with an adapter that changes something."""
    torch.manual_seed(1)
    policy = load_policy(folder, LoRA(rank=4) if lora else None, **kwargs).double().eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return policy


def completions(policy, rows=8, lengths=LENGTHS):
    allowed = torch.tensor(sorted(set(range(len(policy.processor.tokenizer))) - set(policy.banned_ids)))
    generator = torch.Generator().manual_seed(0)
    ids = allowed[torch.randint(0, len(allowed), (rows, int(lengths.max())), generator=generator)]
    return ids, torch.arange(int(lengths.max())) < lengths[:rows, None]


def own_inputs(folder, study):
    """What the family's own processor makes of a study, by its public interface."""
    # The public processor of an InternVL needs torchvision for videos; the one here differs in having no video part.
    source = StillInternVLProcessor if "internvl" in Path(folder, "config.json").read_text() else AutoProcessor
    processor = source.from_pretrained(folder, backend="pil")
    images = [view.load() for view in study.views[:2]]
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": PROMPT}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def own_model(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def own_logps(model, inputs, ids, banned):
    """Log-probabilities of one completion behind one prompt by the model's public forward pass."""
    inputs = dict(inputs, input_ids=torch.cat([inputs["input_ids"], ids[None]], 1))
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "token_type_ids" in inputs:
        inputs["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, len(ids)))
    logits = model(**inputs).logits[0, -len(ids) - 1 : -1].clone()
    logits[:, banned] = -torch.inf
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_shared_repeated_and_own_forward_agree(folders, four, kind, tmp_path):
    policy = exact(folders[kind])
    batch = StudyCollator(policy.processor, PROMPT)(four)
    assert len(set(batch.prompt_mask.sum(1).tolist())) == 2
    ids, mask = completions(policy)
    gradients, logps = {}, {}
    for way in ("required", "off"):
        policy.shared_prefix = way
        policy.zero_grad()
        got = policy.logps(policy.embed(batch), ids, mask).logps
        (got * torch.linspace(-1, 1, got.numel()).view(got.shape)).sum().backward()
        gradients[way] = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
        logps[way] = got.detach()
    assert all("lora" in name and "language_model" in name for name in gradients["off"])
    assert len(gradients["off"]) == 2 * 7 * policy.base.config.text_config.num_hidden_layers
    assert (logps["required"] - logps["off"]).abs().max() < 1e-6
    for name, expected in gradients["off"].items():
        assert expected.abs().max() > 1e-6, name
        assert (gradients["required"][name] - expected).abs().max() < 1e-6 * max(1, expected.abs().max()), name
    policy.save(tmp_path)
    model = own_model(str(tmp_path))
    own = [own_inputs(str(tmp_path), study) for study in four]
    for inputs, prompt, real in zip(own, batch.prompt_ids, batch.prompt_mask, strict=True):
        assert torch.equal(inputs["input_ids"][0], prompt[real])
    for row, num in enumerate(LENGTHS.tolist()):
        with torch.no_grad():
            expected = own_logps(model, own[row // 2], ids[row, :num], policy.banned_ids)
        assert (logps["required"][row, :num] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_generate(folders, four, kind):
    policy = exact(folders[kind], lora=False)
    rollout = sample(policy, policy.embed(StudyCollator(policy.processor, PROMPT)(four)), 1, 30, temperature=0.0)
    assert rollout.completion_ids.shape[1] > WINDOW or kind.startswith("internvl")  # the prompt gets out of sight
    model = own_model(folders[kind])
    for study, ids, mask in zip(four, rollout.completion_ids, rollout.completion_mask, strict=True):
        inputs = own_inputs(folders[kind], study)
        expected = model.generate(**inputs, max_new_tokens=30, do_sample=False, suppress_tokens=policy.banned_ids)
        assert ids[mask].tolist() == expected[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_logps_equal_recomputed(folders, four, kind):
    policy = exact(folders[kind])
    prompts = policy.embed(StudyCollator(policy.processor, PROMPT)(four))
    rollout = sample(policy, prompts, 3, 20, generator=torch.Generator().manual_seed(0))
    again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    assert (again - rollout.old_logps).abs().max() < 1e-4  # sampled in float32


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("gemma3", "llava-mistral", "llava-qwen2")])
def test_completion_longer_than_the_window(folders, four, kind):
    """It cannot share its prompt by two attentions: `auto` repeats rows, `required` says so."""
    policy = exact(folders[kind])
    batch = StudyCollator(policy.processor, PROMPT)(four[:1])
    ids, mask = completions(policy, 2, torch.tensor([WINDOW + 6, 3]))
    got = policy.logps(policy.embed(batch), ids, mask).logps
    policy.shared_prefix = "off"
    assert torch.equal(got, policy.logps(policy.embed(batch), ids, mask).logps)
    policy.shared_prefix = "required"
    with pytest.raises(
        ValueError, match=r"cannot share a prompt, because the policy's attention window has 24 tokens.*max_new_tokens"
    ):
        policy.logps(policy.embed(batch), ids, mask)
    assert policy.logps(policy.embed(batch), ids[:, :WINDOW], mask[:, :WINDOW]).logps.isfinite().all()


@pytest.mark.parametrize("kind", ["gemma3", "llava-qwen2"])
def test_public_attention_gives_the_same(folders, four, kind, monkeypatch):
    """What runs on a GPU: PyTorch's public attention over copied keys."""
    policy = exact(folders[kind])
    prompts = policy.embed(StudyCollator(policy.processor, PROMPT)(four))
    ids, mask = completions(policy)
    expected = policy.logps(prompts, ids, mask).logps
    from mrg.modules.prefix import attention

    class Public:
        apply = staticmethod(attention.concatenated)

    monkeypatch.setattr(attention, "_Merged", Public)
    assert (policy.logps(prompts, ids, mask).logps - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
def test_prompt_has_one_start_and_the_vision_tower_is_frozen(folders, four, kind):
    policy = load_policy(folders[kind])
    tokenizer = policy.processor.tokenizer
    batch = StudyCollator(policy.processor, PROMPT)(four)
    assert (batch.prompt_ids == tokenizer.bos_token_id).sum(1).tolist() == [1, 1, 1, 1]
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert not any("vision_tower" in name or "multi_modal_projector" in name for name in trained)
    moving = load_policy(folders[kind], train_vision=True)
    assert all(p.requires_grad for p in moving.parameters())
    assert tokenizer.decode([policy.eos_id]) == ("<end_of_turn>" if kind == "gemma3" else "</s>")


def test_an_internvl_takes_a_pixel_budget_in_tiles(folders, four, tmp_path):
    policy = load_policy(folders["internvl"], max_pixels=2 * 56 * 56)
    assert policy.processor.image_processor.max_patches == 2
    policy.save(tmp_path)
    assert "StillInternVL" not in "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert load_policy(str(tmp_path)).processor.image_seq_length == 4


def test_a_qwen_with_a_window(policy, four, tmp_path):
    """Three axes of positions beside a window of places."""
    policy.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["text_config"]["layer_types"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    windowed = exact(str(tmp_path), shared_prefix="required")
    assert windowed.family.window == WINDOW
    batch = StudyCollator(windowed.processor, PROMPT)(four)
    ids, mask = completions(windowed)
    with torch.no_grad():
        shared = windowed.logps(windowed.embed(batch), ids, mask).logps
        windowed.shared_prefix = "off"
        assert (windowed.logps(windowed.embed(batch), ids, mask).logps - shared).abs().max() < 1e-6
        policy.double()
        assert (policy.logps(policy.embed(batch), ids, mask).logps - shared).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gemma3", "llava", "internvl"])
def test_a_round_of_grpo_moves_the_adapter_alone(folders, studies, kind):
    """One round through the module: the adapter moves, everything else stays."""
    module = GRPOModule(**nested(
        policy=folders[kind], lora=LoRA(4), prompt=PROMPT, think="absent", max_new_tokens=8, group_size=3,
        learning_rate=1e-2, warmup_steps=1, shared_prefix="required",
    ))  # fmt: skip
    module.reward = Shortness()
    data = FixedData(studies[:4], batch_size=2)
    quick = trainer(1)
    start = {name: p.clone() for name, p in load_policy(folders[kind], LoRA(4)).named_parameters()}
    quick.fit(module, data)
    moved = {n for n, p in module.policy.named_parameters() if "lora" not in n and not torch.equal(p, start[n])}
    assert not moved
    assert any(p.abs().max() > 0 for n, p in module.policy.named_parameters() if "lora_B" in n)


def test_bad_settings(folders, tmp_path):
    with pytest.raises(ValueError, match=r"Expected model\.init_args\.shared_prefix to be 'auto', 'required' or 'off'"):
        load_policy(folders["llava"], shared_prefix="always")
    with pytest.raises(ValueError, match=r"fixed size: set model\.init_args\.max_pixels to 0"):
        load_policy(folders["llava"], max_pixels=100)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics3"}))
    with pytest.raises(ValueError, match=r"type 'idefics3'; supported are qwen2_vl, .*gemma3, llava") as error:
        load_policy(str(tmp_path), shared_prefix="required")
    assert "\n" not in str(error.value)
    model = AutoModelForImageTextToText.from_pretrained(folders["gemma3"])
    model.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match=r"text_config\.final_logit_softcapping is not supported"):
        Policy(model, None)


@pytest.mark.parametrize("kind", [*KINDS, *QWEN])
def test_studies_without_images_alone_and_beside_others(folders, four, kind):
    """A batch in which no study has one gives what the same studies give in company."""
    policy = exact(folders[kind]) if kind in KINDS else family_policy(kind)
    collate = StudyCollator(policy.processor, PROMPT)
    without = [dataclasses.replace(study, views=()) for study in four[:2]]
    ids, mask = completions(policy, 3, torch.tensor([4, 2, 3]))
    beside = policy.logps(policy.embed(collate([four[2], *without])), ids, mask).logps
    assert not len(collate(without).pixel_values)
    alone = policy.logps(policy.embed(collate(without)), ids[1:], mask[1:]).logps
    assert (alone - beside[1:]).abs().max() < 1e-9
    rollout = sample(policy, policy.embed(collate(without)), 2, 5, generator=torch.Generator().manual_seed(0))
    assert len(rollout.texts) == 4
