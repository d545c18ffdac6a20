"""Encoders with invented weights and a small vocabulary, in the layout of published folders."""

import json

import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

WORDS = "the lungs are clear no effusion pneumothorax heart size is normal mild edema left right acute , . :"
WORDS = WORDS.split(" ")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def fill(model):
    """Give a network weights that do not depend on a random generator."""
    for index, (name, tensor) in enumerate(model.named_parameters()):
        center = 1.0 if "LayerNorm.weight" in name else 0.0
        waves = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (1 + 0.37 * index) + index)
        tensor.data = (center + 0.3 * waves).float().view(tensor.shape)
    return model.eval()


def write_bert(folder, legacy=False):
    """Write a BERT; `legacy` is the layout of old folders, pytorch_model.bin and vocab.txt without tokenizer_config."""
    sizes = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=48, **SIZES)
    model = fill(BertModel(sizes))
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    if legacy:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 48}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_roberta(folder):
    """Write a RoBERTa with a tokenizer of bytes, in which a word has another token after a space."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = [f"Ġ{word}" for word in ("no", "effusion", "the", "lungs", "clear")]
    merges, pieces = [], []
    for word in words:
        for end in range(2, len(word) + 1):
            merges.append(f"{word[: end - 1]} {word[end - 1]}")
            pieces.append(word[:end])
    tokens = list(dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet()), *pieces]))
    sizes = RobertaConfig(vocab_size=len(tokens), max_position_embeddings=42, type_vocab_size=1, **SIZES)
    folder.mkdir(exist_ok=True)
    fill(RobertaModel(sizes)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 40}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
