"""Time CheXbertLabeler against plain loops with the same weights, and count the labels that differ.

    python benchmarks/labeling.py [--threads 1] [--device cpu] [--repeats 3] [--output labeling.json]
    python benchmarks/labeling.py --checkpoint chexbert.pth --tokenizer bert-base-uncased --texts reports.txt

Without --checkpoint, weights are random, with the size and file layout of the published ones, which may not be
redistributed. The time does not depend on the values of the weights; the number of labels changed by bfloat16 does.
Without --texts (one report per line), reports are the demo's, cut or joined to realistic lengths (about 60 tokens, 20
to 150).

1. A set of reports: (a) batches of 64 in input order, padded to the longest report; (b) one report at a time; (c)
   CheXbertLabeler; (d) CheXbertLabeler in bfloat16. (a) and (b) are transformers' BertModel with its pooler and 14
   heads. No text occurs twice and no cache is used.
2. A GRPO step with 8 completions and 8 copies of the reference per study: (a) as above, predictions and references
   separately; (b) CheXbertLabeler's batches, separately, with every text labelled; (c) CheXbertLabeler, which labels
   both in one call. When the studies recur in a later epoch, the completions are new and the references are cached.

Each repeat runs all of them in turn. "x ours" is the speedup of (c): from the fastest repeats, followed by the median
of the repeats' ratios.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizer

import mrg
from mrg.datamodules.demo.reports import NEGATIVE_PHRASES, NOUNS, write_report
from mrg.metrics.labelers.chexbert import CheXbertLabeler, prepare
from mrg.metrics.labelers.chexbert_checkpoint import find_checkpoint, read_checkpoint
from mrg.metrics.shared import batches

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD = re.compile(r"\w+|[^\w\s]")
GROUP_SIZE = 8
EPOCHS = ("first epoch", "later epochs")
Timings = dict[str, list[float]]


class PlainLoop:
    """The loop of CheXbert's own code and of packages that use it."""

    def __init__(self, checkpoint: Path, tokenizer: Path | str, device: str) -> None:
        weights = read_checkpoint(checkpoint)
        word = weights["bert.embeddings.word_embeddings.weight"]
        config = BertConfig(
            vocab_size=len(word),
            hidden_size=word.shape[1],
            num_hidden_layers=sum(name.endswith("attention.self.query.weight") for name in weights),
            num_attention_heads=word.shape[1] // 64,
            intermediate_size=len(weights["bert.encoder.layer.0.intermediate.dense.weight"]),
        )
        self.bert = BertModel(config).eval().to(device)
        bert = {name.removeprefix("bert."): tensor for name, tensor in weights.items() if name.startswith("bert.")}
        missing, _ = self.bert.load_state_dict(bert, strict=False)
        assert all(name.startswith("pooler.") for name in missing), missing
        self.heads = [
            [weights[f"linear_heads.{i}.{kind}"].to(device) for kind in ("weight", "bias")] for i in range(14)
        ]
        self.tokenizer = BertTokenizer.from_pretrained(tokenizer)
        self.device = device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int) -> Tensor:
        rows = []
        for start in range(0, len(texts), batch_size):
            batch = [prepare(text) for text in texts[start : start + batch_size]]
            inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=512, return_tensors="pt")
            first = self.bert(**inputs.to(self.device)).last_hidden_state[:, 0]
            rows.append(torch.stack([(first @ weight.T + bias).argmax(-1) for weight, bias in self.heads], 1).cpu())
        return torch.cat(rows)


def label_every_text(labeler: CheXbertLabeler, texts: Sequence[str]) -> Tensor:
    """Label with the labeler's batches, but without skipping duplicate or cached texts."""
    network, tokenizer = labeler._network(), labeler._shared.tokenizer
    ids = tokenizer([prepare(text) for text in texts], truncation=True, max_length=512)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
    rows = [
        network.labels([ids for _, ids in batch])
        for batch in batches([("", ids[i]) for i in order], labeler.batch_tokens)
    ]
    return torch.cat(rows)[torch.tensor(order).argsort()].long()


def make_texts(num: int, seed: int) -> list[str]:
    """Distinct reports made of the demo's phrases, with the lengths of real findings sections."""
    rng = np.random.default_rng(seed)
    texts: dict[str, None] = {}
    while len(texts) < num:
        length = int(np.clip(rng.lognormal(np.log(53), 0.42), 18, 148))
        words: list[str] = []
        while len(words) < length:
            classes = {c: int(rng.choice(3 if c in NEGATIVE_PHRASES else 2)) for c in NOUNS}
            classes = {c: label for c, label in classes.items() if label}
            report, _ = write_report(rng, classes, {c: int(rng.choice([-1, 1])) for c in classes})
            words += WORD.findall(report)
        texts[" ".join(words[:length])] = None
    return list(texts)


@torch.no_grad()
def make_checkpoint(folder: Path, texts: Sequence[str]) -> None:
    """Write chexbert.pth and vocab.txt of a random bert-base whose heads are centered so that all classes occur."""
    words = sorted({word.lower() for text in texts for word in WORD.findall(text)})
    vocabulary = [*SPECIAL, *words, *(f"[unused{i}]" for i in range(30_522 - len(SPECIAL) - len(words)))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    bert = BertModel(BertConfig(initializer_range=0.04)).eval()
    tokenizer = BertTokenizer.from_pretrained(folder)
    first = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[:, 0] for text in texts[:16]]
    state = {f"module.bert.{name}": tensor for name, tensor in bert.state_dict().items()}
    for index in range(14):
        weight = torch.randn(4 if index < 13 else 2, 768)
        state[f"module.linear_heads.{index}.weight"] = weight
        state[f"module.linear_heads.{index}.bias"] = -weight @ torch.cat(first).mean(0)
    torch.save({"model_state_dict": state}, folder / "chexbert.pth")


def compare(seconds: Timings, num: int, ours: str) -> dict[str, Any]:
    """Best and median time of each method, reports per second, and speedup of our method."""
    return {
        name: {
            "seconds": [round(value, 3) for value in values],
            "best": round(min(values), 3),
            "median": round(statistics.median(values), 3),
            "reports_per_s": round(num / min(values), 2),
            "ours_faster_best": round(min(values) / min(seconds[ours]), 2),
            "ours_faster_median": round(
                statistics.median(a / b for a, b in zip(values, seconds[ours], strict=True)), 2
            ),
        }
        for name, values in seconds.items()
    }


def time_pile(texts: list[str], plain: PlainLoop, labelers: dict[str, CheXbertLabeler], repeats: int) -> dict[str, Any]:
    """Part 1: a set of reports."""
    methods: dict[str, Callable[[], Tensor]] = {
        "input order, batches of 64": lambda: plain(texts, 64),
        "one at a time": lambda: plain(texts, 1),
        **{f"CheXbertLabeler, {dtype}": partial(labeler, texts) for dtype, labeler in labelers.items()},
    }
    seconds: Timings = {name: [] for name in methods}
    labels = {}
    for _ in range(repeats):
        for name, method in methods.items():
            forget(*labelers.values())
            start = time.perf_counter()
            labels[name] = method()
            seconds[name].append(time.perf_counter() - start)
    results = compare(seconds, len(texts), "CheXbertLabeler, float32")
    for name, row in results.items():
        row["labels_changed"] = int((labels[name] != labels["one at a time"]).sum())
    return {"num_labels": labels["one at a time"].numel(), "methods": results}


def time_grpo(
    texts: list[str], plain: PlainLoop, labeler: CheXbertLabeler, studies: int, repeats: int
) -> dict[str, Any]:
    """Part 2: GRPO steps on the same studies in two epochs."""
    target = [reference for reference in texts[:studies] for _ in range(GROUP_SIZE)]
    num = len(target)
    completions = [texts[studies : studies + num], texts[studies + num : studies + 2 * num]]
    methods: dict[str, Callable[[list[str]], Tensor]] = {
        "input order, each side": lambda preds: torch.cat([plain(preds, 64), plain(target, 64)]),
        "sorted, each side, every text": lambda preds: torch.cat(
            [label_every_text(labeler, preds), label_every_text(labeler, target)]
        ),
        "CheXbertLabeler": lambda preds: labeler([*preds, *target]),
    }
    seconds: list[Timings] = [{name: [] for name in methods} for _ in EPOCHS]
    changed = dict.fromkeys(methods, 0)
    for _ in range(repeats):
        forget(labeler)
        for times, preds in zip(seconds, completions, strict=True):
            labels = {}
            for name, method in methods.items():
                start = time.perf_counter()
                labels[name] = method(preds)
                times[name].append(time.perf_counter() - start)
            for name in methods:
                changed[name] += int((labels[name] != labels["input order, each side"]).sum())
    both = {name: [a + b for a, b in zip(seconds[0][name], seconds[1][name], strict=True)] for name in methods}
    return {
        **{name: compare(times, 2 * num, "CheXbertLabeler") for name, times in zip(EPOCHS, seconds, strict=True)},
        "both epochs": compare(both, 4 * num, "CheXbertLabeler"),
        "labels_changed": changed,
    }


def forget(*labelers: CheXbertLabeler) -> None:
    for labeler in labelers:
        labeler._shared.cache.clear()


def show(title: str, results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title}")
    print(f"{'':32}{'best s':>9}{'median s':>10}{'reports/s':>11}{'x ours':>8}{'(median)':>10}{'changed':>9}")
    for name, row in results.items():
        print(
            f"{name:32}{row['best']:9.2f}{row['median']:10.2f}{row['reports_per_s']:11.1f}{row['ours_faster_best']:8.2f}"
            f"{row['ours_faster_median']:10.2f}{row.get('labels_changed', ''):>9}"
        )


def hardware(device: str) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"cpu": f"{len(names)} x {names[0]}", "threads": torch.get_num_threads(), "gpu": gpu}


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time CheXbertLabeler.")
    parser.add_argument("--checkpoint", help="CheXbert weights (default: random)")
    parser.add_argument("--tokenizer", help="folder or hub id of the tokenizer, with --checkpoint")
    parser.add_argument("--texts", type=Path, help="file with one report per line")
    parser.add_argument("--num", type=int, default=64, help="number of reports in part 1")
    parser.add_argument("--studies", type=int, default=3, help="studies per GRPO step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = parse(args)
    torch.set_num_threads(options.threads)
    needed = max(options.num, options.studies * (1 + 2 * GROUP_SIZE))
    if options.texts:
        lines = options.texts.read_text(encoding="utf-8").splitlines()
        texts = list(dict.fromkeys(prepare(line) for line in lines if line.strip()))
    else:
        texts = make_texts(needed, seed=0)
    if len(texts) < needed:
        raise SystemExit(f"Expected at least {needed} distinct reports in {options.texts}, but found {len(texts)}.")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, tokenizer = options.checkpoint or folder, options.tokenizer or folder
        if not options.checkpoint:
            make_checkpoint(Path(folder), texts)
        labelers = {
            dtype: CheXbertLabeler(checkpoint, tokenizer, options.device, dtype, options.batch_tokens)
            for dtype in ("float32", "bfloat16")
        }
        plain = PlainLoop(find_checkpoint(checkpoint), tokenizer, options.device)
        for label in (partial(plain, batch_size=2), *labelers.values()):
            label(texts[:2])  # the first call loads the weights
        lengths = [len(ids) for ids in plain.tokenizer(texts[: options.num])["input_ids"]]
        results = {
            "date": datetime.date.today().isoformat(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "mrg": mrg.__version__}
            | {"transformers": transformers.__version__},
            "hardware": hardware(options.device),
            "weights": "given" if options.checkpoint else "random, bert-base",
            "tokens": {"mean": statistics.mean(lengths), "min": min(lengths), "max": max(lengths)},
            "settings": {"repeats": options.repeats, "batch_tokens": options.batch_tokens, "studies": options.studies},
            "pile": time_pile(texts[: options.num], plain, labelers, options.repeats),
            "grpo": time_grpo(texts, plain, labelers["float32"], options.studies, options.repeats),
        }
    tokens = results["tokens"]
    print(f"{results['hardware']}, {results['weights']}, {tokens['mean']:.0f} tokens ({tokens['min']}-{tokens['max']})")
    show(f"{options.num} reports, {results['pile']['num_labels']} labels", results["pile"]["methods"])
    for name in (*EPOCHS, "both epochs"):
        show(f"GRPO, {options.studies} x ({GROUP_SIZE} + {GROUP_SIZE}) reports, {name}", results["grpo"][name])
    print(f"labels changed: {results['grpo']['labels_changed']}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
