"""Random weights in the layout of the published chexbert.pth, a small vocabulary, and the plain loop over reports."""

import re

import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = "the lungs are clear no effusion pneumothorax heart size is normal mild edema left right acute , . : cafe"
WORDS = WORDS.split(" ")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
SIZES = BertConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=192,
    attn_implementation="eager",
)
ODD = [
    "",
    "  \n\t ",
    ".",
    "No\n\n effusion \t.",
    "No effusion .",
    "Café — naïve «œdème» 心脏 🙂 \u200b\ufeff",
    "\x00\x07 zero \u2028 and \u00a0 spaces",
    "[SEP] [MASK] ##a [PAD]",
    "a" * 300,
    "heart size is normal . " * 500,
    "no effusion , mild edema . " * 86,
]


def random_text(generator):
    length = int(torch.randint(3, 90, (), generator=generator))
    return " ".join(WORDS[i] for i in torch.randint(0, len(WORDS), (length,), generator=generator))


def random_weights():
    """Heads centered on what random texts give, so that every class of every head occurs among a few hundred texts."""
    generator = torch.Generator().manual_seed(0)
    bert = BertModel(SIZES).eval()
    for name, tensor in bert.named_parameters():
        center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        tensor.data = center + 0.15 * torch.randn(tensor.shape, generator=generator)
    with torch.no_grad():
        ids = torch.randint(5, len(VOCABULARY), (64, 40), generator=generator)
        mean = bert(ids).last_hidden_state[:, 0].mean(0)
    state = {f"bert.{name}": tensor.detach() for name, tensor in bert.state_dict().items()}
    for index in range(14):
        weight = torch.randn(4 if index < 13 else 2, 128, generator=generator)
        state |= {f"linear_heads.{index}.weight": weight, f"linear_heads.{index}.bias": -weight @ mean}
    return state


def published(state):
    """What the published file holds besides the weights: buffers of its time, and the state of the optimiser."""
    state = {"module.bert.embeddings.position_ids": torch.arange(512).unsqueeze(0), **prefixed(state)}
    moments = {index: {"step": 7, "exp_avg": torch.zeros(64, 64)} for index in range(20)}
    return {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": moments, "param_groups": []}}


def prefixed(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


def write_lookalike(folder):
    """Write chexbert.pth and vocab.txt."""
    torch.save(published(random_weights()), folder / "chexbert.pth")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")


@torch.no_grad()
def one_at_a_time(folder, texts):
    """The original's scores, without batches: last hidden state, first position, 14 heads."""
    state = torch.load(folder / "chexbert.pth")["model_state_dict"]
    state = {name.removeprefix("module."): tensor for name, tensor in state.items() if "position_ids" not in name}
    bert = BertModel(SIZES).eval()
    bert.load_state_dict({name[5:]: tensor for name, tensor in state.items() if name.startswith("bert.")})
    heads = [(state[f"linear_heads.{i}.weight"], state[f"linear_heads.{i}.bias"]) for i in range(14)]
    tokenizer = BertTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        text = re.sub(r"\s+", " ", text.strip()).strip()
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        first = bert(**inputs).last_hidden_state[:, 0]
        rows.append([(first @ weight.T + bias)[0] for weight, bias in heads])
    return rows
