"""CheXbert's weights: finding, checking and converting them.

The published file, `chexbert.pth`, is the state of a training run: `model_state_dict` holds `module.bert.*` and
`module.linear_heads.{0..13}.*`, and two thirds of the file are optimizer states, which are not read here. Its licence
does not permit redistribution, so `mrg` does not include it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrg.errors import NotFoundError, UserError
from mrg.metrics.labelers.chexbert_network import HEAD_CLASSES, HEAD_SIZE

REPOSITORY, PTH, SAFETENSORS = "StanfordAIMI/RRG_scorers", "chexbert.pth", "chexbert.safetensors"
HOW_TO_GET_IT = (
    f"CheXbert's weights are {PTH} in the Hugging Face repository {REPOSITORY} (Stanford's academic licence: "
    "non-commercial, no redistribution); download it and pass its path as `checkpoint`, or use RulesLabeler, which "
    "needs no weights."
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_NOT_NEEDED = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids", "bert.pooler.")


def find_checkpoint(checkpoint: str | Path) -> Path:
    """Path of a weights file; that of a hub id is downloaded unless it is in the hub's cache.

    Args:
        checkpoint: A `.pth` or `.safetensors` file, a folder with chexbert.safetensors or chexbert.pth (the
            former is preferred), or the hub id of a repository with chexbert.pth.

    Raises:
        NotFoundError: If there is none; the message says where it looked and how to get it.
    """
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path.absolute()
    if path.is_dir():
        for name in (SAFETENSORS, PTH):
            if (path / name).is_file():
                return (path / name).absolute()
        raise NotFoundError(f"Neither {SAFETENSORS} nor {PTH} is in {path.absolute()}: {HOW_TO_GET_IT}")
    is_hub_id = isinstance(checkpoint, str) and _HUB_ID.fullmatch(checkpoint) is not None
    if not is_hub_id or path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        raise NotFoundError(f"{path.absolute()} does not exist: {HOW_TO_GET_IT}")
    return _download(str(checkpoint), PTH, HOW_TO_GET_IT)


def _download(repository: str, file: str, remedy: str) -> Path:
    """Path of a file of a hub repository; it is downloaded unless it is in the hub's cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(repository, file, local_files_only=True))
        except LocalEntryNotFoundError:
            with _quiet_hub():
                return Path(hf_hub_download(repository, file))
    except Exception as error:  # no network, no such repository, no access: the remedy is the same, so name the reason
        raise NotFoundError(
            f"{Path(repository).absolute()} does not exist, and {file} could not be fetched from the hub repository "
            f"{repository} ({_reason(error)}): {remedy}"
        ) from error


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Suppress the hub's log line for each attempt; our error states the reason."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read and check the weights of a `.pth` or `.safetensors` file.

    Only tensors are read, so a file cannot run code.

    Returns:
        float32 tensors on the CPU, `bert.*` and `linear_heads.*`, without the pooler; they may be backed by the file.

    Raises:
        UserError: If the file is damaged, contains anything but tensors, or is not a CheXbert checkpoint.
    """
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key).removeprefix("module.")
        if name.startswith(_NOT_NEEDED):
            continue
        if not isinstance(value, Tensor):
            raise UserError(f"{path} is not a CheXbert checkpoint: {key} is not a tensor, but {type(value).__name__}.")
        if fault := _fault(value):
            raise UserError(f"{path} is not a CheXbert checkpoint: {key} is {fault}.")
        weights[name] = value.float()
    _check(path, weights)
    return weights


def _fault(value: Tensor) -> str:
    """Why a tensor cannot be a weight; empty if it can.

    A file of a few bytes can declare a tensor of any size, which a copy would then allocate.
    """
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"a tensor of layout {value.layout} on {value.device}, not a plain one on the CPU"
    if not value.is_floating_point():
        return f"of type {value.dtype}, not of floating point"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"of shape {tuple(value.shape)}, but the file holds {value.untyped_storage().nbytes():,} bytes of it"
    return ""


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({_reason(error)}): it is damaged or incomplete; "
            f"convert {PTH} again."
        ) from error


def _read_pth(path: Path) -> Mapping[str, object]:
    try:
        # Memory-mapped, so that the optimizer state is not read; the format before PyTorch 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} contains Python objects besides tensors and is not loaded, because that could run code: "
                f"{HOW_TO_GET_IT}"
            ) from error
        # Its message would recommend weights_only=False.
        raise UserError(_damaged(path, "it holds no pickled tensors")) from error
    except Exception as error:  # a damaged or malicious file can raise any class from torch's reader
        raise UserError(_damaged(path, _reason(error))) from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(
            f"{path} is not a CheXbert checkpoint: it should hold a dictionary of tensors, but holds "
            f"{type(content).__name__}."
        )
    return state


def _damaged(path: Path, reason: str) -> str:
    size = path.stat().st_size if path.exists() else 0
    return (
        f"{path} ({size:,} bytes) is not a file that PyTorch can read ({reason}): it is damaged, or its "
        "download was not complete; download it again."
    )


def _check(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise unless the weights are exactly those of a BERT with CheXbert's heads."""
    anchors = ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.intermediate.dense.weight")
    missing = [name for name in (*anchors, "linear_heads.0.weight") if name not in weights or weights[name].ndim != 2]
    if missing:
        found = f"found {_first(sorted(weights))}" if weights else "it holds no tensor"
        raise UserError(f"{path} is another checkpoint, not CheXbert's: it lacks {_first(missing)}; {found}.")
    num_layers = 1 + max(_layers(weights))
    if num_layers > len(weights):  # so that work and memory are proportional to the file
        raise UserError(
            f"{path} is not a CheXbert checkpoint: it names layer {num_layers - 1}, but has {len(weights)} tensors."
        )
    expected = dict(_expected_shapes(weights, num_layers))
    faults = []
    if lacking := [name for name in expected if name not in weights]:
        faults.append(f"it lacks {_first(lacking)}")
    if unknown := [name for name in weights if name not in expected]:
        faults.append(f"it holds {_first(unknown)} besides")
    differing = [name for name in weights if name in expected and tuple(weights[name].shape) != expected[name]]
    if differing:
        name = differing[0]
        faults.append(f"{name} is of shape {tuple(weights[name].shape)} instead of {expected[name]}")
    hidden = weights[anchors[0]].shape[1]
    if hidden == 0 or hidden % HEAD_SIZE:
        faults.append(f"its hidden size {hidden} is not a multiple of {HEAD_SIZE}")
    for table, least in (("word", 1), ("position", 2), ("token_type", 1)):
        rows = expected[f"bert.embeddings.{table}_embeddings.weight"][0]
        if rows < least:
            faults.append(f"its table of {table.replace('_', ' ')} embeddings has {rows} rows, fewer than {least}")
    if faults:
        raise UserError(f"{path} is not a CheXbert checkpoint: {'; '.join(faults)}.")


def _layers(weights: Mapping[str, Tensor]) -> set[int]:
    """Layer numbers in the names of the weights; numbers of more than 6 digits are ignored."""
    names = (re.match(r"bert\.encoder\.layer\.([0-9]{1,6})\.", name) for name in weights)
    return {int(match[1]) for match in names if match}


def _expected_shapes(weights: Mapping[str, Tensor], num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes for the sizes of the weights themselves: those of bert-base for the published file."""
    hidden = weights["bert.embeddings.word_embeddings.weight"].shape[1]
    wide = weights["bert.encoder.layer.0.intermediate.dense.weight"].shape[0]

    def pair(name: str, rows: int, columns: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (rows,) if columns is None else (rows, columns)
        yield f"{name}.bias", (rows,)

    for table in ("word", "position", "token_type"):
        name = f"bert.embeddings.{table}_embeddings.weight"
        yield name, (weights[name].shape[0] if name in weights and weights[name].ndim else 0, hidden)
    yield from pair("bert.embeddings.LayerNorm", hidden)
    for index in range(num_layers):
        layer = f"bert.encoder.layer.{index}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            yield from pair(f"{layer}.attention.{part}", hidden, hidden)
        yield from pair(f"{layer}.attention.output.LayerNorm", hidden)
        yield from pair(f"{layer}.intermediate.dense", wide, hidden)
        yield from pair(f"{layer}.output.dense", hidden, wide)
        yield from pair(f"{layer}.output.LayerNorm", hidden)
    for index, num_classes in enumerate(HEAD_CLASSES):
        yield from pair(f"linear_heads.{index}", num_classes, hidden)


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _reason(error: Exception) -> str:
    """Class and first sentence of an error."""
    text = (str(error).strip().splitlines() or [""])[0].split(". ")[0]
    return f"{type(error).__name__}: {text[:150]}" if text else type(error).__name__


def read_tokenizer(tokenizer: str | Path, vocab_size: int) -> Any:
    """The tokenizer of bert-base-uncased, checked against the checkpoint.

    Args:
        tokenizer: A folder with vocab.txt or tokenizer.json, or the hub id of a repository with vocab.txt.
        vocab_size: Number of word embeddings in the checkpoint.

    Raises:
        NotFoundError: If it is not found.
        UserError: If it cannot be read, or its vocabulary has another size.
    """
    from transformers import BertTokenizer

    remedy = "pass a folder with bert-base-uncased's vocab.txt as `tokenizer` (the checkpoint has no vocabulary)."
    folder = Path(tokenizer).expanduser()
    # `from_pretrained` only gets folders: without a network it retries for minutes, then returns no vocabulary.
    if not folder.is_dir():
        folder = _download(str(tokenizer), "vocab.txt", remedy).parent
    elif not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise NotFoundError(f"Neither vocab.txt nor tokenizer.json is in {folder.absolute()}: {remedy}")
    try:
        loaded = BertTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise many classes for a damaged file
        raise UserError(f"The tokenizer in {folder} could not be read ({_reason(error)}): {remedy}") from error
    if len(loaded) != vocab_size:
        raise UserError(
            f"The tokenizer in {folder} has {len(loaded):,} tokens, but the CheXbert checkpoint has {vocab_size:,}: "
            f"{remedy}"
        )
    ids = set(loaded.get_vocab().values())
    if ids != set(range(vocab_size)) or len(loaded("")["input_ids"]) != 2:
        finding = "repeats or skips a number" if ids != set(range(vocab_size)) else "adds no [CLS] and [SEP] to a text"
        raise UserError(f"The tokenizer in {folder} {finding}: {remedy}")
    return loaded


def convert_checkpoint(source: str | Path, target: str | Path) -> Path:
    """Write only the weights, as safetensors: a third of the size of `chexbert.pth`, and faster to open.

    Args:
        source: Checkpoint, see `find_checkpoint`.
        target: A `.safetensors` file, or a folder for chexbert.safetensors. An existing file is replaced atomically.

    Returns:
        Path of the written file.

    Raises:
        UserError: If `target` has another suffix, or `source` is not a CheXbert checkpoint.
        NotFoundError: If there is no `source`, or no folder for `target`.
    """
    from safetensors.torch import save_file

    target = Path(target).expanduser().absolute()
    target = target / SAFETENSORS if target.is_dir() else target
    if target.suffix != ".safetensors":
        raise UserError(f"Expected argument `target` to be a folder or to end with .safetensors, but got {target}.")
    if not target.parent.is_dir():
        raise NotFoundError(f"The folder {target.parent} for `target` does not exist: create it first.")
    weights = read_checkpoint(find_checkpoint(source))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".chexbert-") as folder:
        written = Path(folder) / SAFETENSORS
        # safetensors rejects views into one storage, which a checkpoint may contain.
        copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
        save_file(copies, written, {"format": "pt"})
        os.replace(written, target)
    return target
