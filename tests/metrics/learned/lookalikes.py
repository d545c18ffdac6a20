"""Encoders with invented weights and a small vocabulary, in the layout of published folders."""

import json

import torch
from transformers import BertConfig, BertForTokenClassification, BertModel, RobertaConfig, RobertaModel

from mrg.metrics.learned.ratescore import TYPES

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


def write_roberta(folder, layers=3):
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
    sizes.num_hidden_layers = layers
    folder.mkdir(exist_ok=True)
    fill(RobertaModel(sizes)).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 40}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@torch.no_grad()
def write_centered(folder):
    """Write the tiny BERT with outputs that point in all directions, instead of nearly the same one."""
    model = BertModel.from_pretrained(write_bert(folder))
    ids = torch.arange(5, len(VOCABULARY))[:, None]
    first = model(torch.cat([torch.full_like(ids, 2), ids, torch.full_like(ids, 3)], 1)).last_hidden_state[:, 0]
    model.encoder.layer[-1].output.LayerNorm.bias -= first.mean(0)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def write_ner(folder):
    """Write a token classifier of RaTEScore's types on the tiny BERT, centered so that every type occurs."""
    write_bert(folder)
    names = ["O", *(f"{start}-{kind}" for kind in TYPES for start in "BI")]
    sizes = BertConfig.from_pretrained(folder, id2label=dict(enumerate(names)))
    model = fill(BertForTokenClassification(sizes))
    number = len(VOCABULARY) - 5
    ids = torch.stack([5 + torch.arange(number) * step % number for step in range(2, 20)])
    logits = model.bert(ids).last_hidden_state.flatten(0, 1) @ model.classifier.weight.T
    model.classifier.weight.data /= logits.std(0)[:, None]
    model.classifier.bias.data = -logits.mean(0) / logits.std(0)
    model.save_pretrained(folder)
    return folder


LABELS = ["Anatomy::definitely present", "Observation::definitely present", "Observation::definitely absent"]
RELATIONS = ["modify", "located_at", "suggestive_of"]


def wave(index, *shape, scale=0.3):
    values = torch.sin(
        torch.arange(torch.tensor(shape).prod().item(), dtype=torch.float64) * (1 + 0.37 * index) + index
    )
    return (scale * values).float().view(shape)


def layers(prefix, last, sizes, number, center, scale=1.5):
    """A feed-forward network of DyGIE++ with its last layer, for inputs around `center`."""
    state = {}
    places = [*(f"{prefix}._linear_layers.{i}" for i in range(len(sizes) - 2)), last]
    for i, (place, wide, rows) in enumerate(zip(places, sizes[:-1], sizes[1:], strict=True)):
        weight = state[f"{place}.weight"] = wave(number + i, rows, wide, scale=scale)
        state[f"{place}.bias"] = wave(number + i + 0.5, rows) - (weight @ center if i == 0 else 0)
    return state


def write_radgraph(folder, encoder, name="radgraph-xl", width=4, features=5):
    """Write the files of a RadGraph archive: AllenNLP's configuration, vocabulary and tensors, unused ones included."""
    (folder / "vocabulary").mkdir(parents=True)
    files = {"non_padded_namespaces": ["*labels", "*tags"], f"{name}__ner_labels": ["", *LABELS]}
    files[f"{name}__relation_labels"] = RELATIONS
    for file, lines in files.items():
        (folder / "vocabulary" / f"{file}.txt").write_text("\n".join(lines) + ("" if file[0] == "n" else "\n"))
    embedder = {"type": "pretrained_transformer_mismatched", "model_name": str(encoder), "max_length": 24}
    modules = {
        "ner": {},
        "relation": {"spans_per_word": 0.5},
        "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
        "events": {"trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.8,
                   "loss_weights": {"trigger": 1.0, "arguments": 1.0}},
    }  # fmt: skip
    model = {
        "type": "dygie", "initializer": {}, "module_initializer": {}, "feature_size": features, "max_span_width": width,
        "embedder": {"token_embedders": {"bert": embedder}}, "target_task": "relation", "modules": modules,
        "feedforward_params": {"num_layers": 2, "hidden_dims": 12, "dropout": 0.4},
        "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
    }  # fmt: skip
    reader = {"type": "dygie", "max_span_width": width, "token_indexers": {"bert": embedder}}
    (folder / "config.json").write_text(json.dumps({"dataset_reader": reader, "model": model}))
    torch.save(radgraph_weights(encoder, name, width, features), folder / "weights.th")
    return folder


@torch.no_grad()
def radgraph_weights(encoder, name, width, features):
    """Heads centered on what texts give, so that every class and type occurs."""
    model = BertModel.from_pretrained(encoder)
    bert = model.state_dict()
    state = {f"_embedder.token_embedder_bert._matched_embedder.transformer_model.{key}": bert[key] for key in bert}
    widths = state["_endpoint_span_extractor._span_width_embedding.weight"] = wave(1, width, features)
    word = model(torch.arange(5, len(VOCABULARY))[None]).last_hidden_state[0].mean(0)
    span = torch.cat([word, word, widths.mean(0)])
    pair, size = torch.cat([span, span, span * span]), len(span)
    ner, relation = f"{name}__ner_labels", f"{name}__relation_labels"
    pruner, forward = f"_relation._mention_pruners.{relation}._scorer", f"_relation._relation_feedforwards.{relation}"
    coref = "_coref._mention_pruner._scorer"
    for prefix, last, sizes, center in (
        (f"_ner._ner_scorers.{ner}.0._module", f"_ner._ner_scorers.{ner}.1._module", [size, 12, 12, len(LABELS)], span),
        (f"{pruner}.0._module", f"{pruner}.1._module", [size, 12, 12, 1], span),
        (forward, f"_relation._relation_scorers.{relation}", [3 * size, 12, 12, len(RELATIONS)], pair),
        ("_coref._antecedent_feedforward._module", "_coref._antecedent_scorer._module",
         [3 * size + features, 12, 12, 1], torch.zeros(3 * size + features)),
        (f"{coref}.0._module", f"{coref}.1._module", [size, 12, 12, 1], span),
        ("", "_coref._f_network._linear_layers.0", [2 * size, size], torch.cat([span, span])),
    ):  # fmt: skip
        state |= layers(prefix, last, sizes, len(state), center)
    for place in (f"_ner._ner_scorers.{ner}.1._module", f"_relation._relation_scorers.{relation}"):
        state[f"{place}.bias"][:] = -1.5
    return state | {f"{part}._distance_embedding.weight": wave(18, 10, features) for part in ("_coref", "_events")}
