"""Encoders of transformers in local folders, read the same way for all learned scores.

`restored` is the one place where what published folders lack on transformers 5 is filled in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrg.errors import NotFoundError, UserError, where_raised
from mrg.metrics.shared import batches

_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer")
_UNUSED = ("pooler.", "position_ids", "token_type_ids")  # layers and buffers that no score reads
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


class Encoder(NamedTuple):
    """A network, its tokenizer and the number of tokens that fit it."""

    model: Any
    tokenizer: Any
    max_tokens: int

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts with special tokens, truncated to `max_tokens`."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        return ids

    def outputs(
        self, ids: Sequence[Sequence[int]], batch_tokens: int, output: str = "last_hidden_state"
    ) -> list[Tensor]:
        """Outputs of the network for each text, (L, …) with L its number of tokens, in the order of `ids`."""
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]), reverse=True)
        device = next(self.model.parameters()).device
        found: dict[int, Tensor] = {}
        for batch in batches([(index, list(ids[index])) for index in order], batch_tokens):
            longest = len(batch[0][1])
            tokens = torch.tensor([row + [self.pad] * (longest - len(row)) for _, row in batch], device=device)
            lengths = torch.tensor([len(row) for _, row in batch], device=device)
            mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
            values = self.model(input_ids=tokens, attention_mask=mask)[output]
            found.update((index, value[: len(row)]) for (index, row), value in zip(batch, values, strict=True))
        return [found[index] for index in range(len(ids))]

    @property
    def pad(self) -> int:
        """Token of masked positions."""
        return int(self.tokenizer.pad_token_id or 0)


def read_encoder(
    folder: str | Path, what: str, remedy: str, head: str = "AutoModel", layers: int | None = None
) -> Encoder:
    """Read an encoder from a folder, without the hub.

    Args:
        folder: Folder with config.json, weights and the files of the tokenizer.
        what: Name of what needs it, for messages.
        remedy: Where the weights come from and their license, for messages.
        head: Class of transformers.
        layers: Number of layers to read; all by default.

    Returns:
        The encoder in float32 and evaluation mode, on the CPU.

    Raises:
        NotFoundError: If the folder or a file is missing.
        UserError: If the files cannot be read, do not fit each other, or have fewer layers.
    """
    import transformers

    path = require_folder(folder, what, remedy)
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        raise NotFoundError(f"No weights (model.safetensors or pytorch_model.bin) are in {path}: {remedy}")
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if layers is not None and layers != config.num_hidden_layers:
            if not 1 <= layers <= config.num_hidden_layers:
                raise UserError(
                    f"Expected argument `layer` to be from 1 to {config.num_hidden_layers}, the number of layers of "
                    f"{path}, but got {layers}."
                )
            config.num_hidden_layers = layers
        with _quiet():
            model, report = getattr(transformers, head).from_pretrained(
                path, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except UserError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many classes for a damaged file
        reason = where_raised(error)
        raise UserError(f"The encoder of {what} in {path} could not be read: {reason}. {remedy}") from error
    missing = sorted(name for name in report["missing_keys"] if not any(part in name for part in _UNUSED))
    if missing:  # they would be random
        raise UserError(f"The weights in {path} lack {missing[0]}, one of {len(missing)} missing tensors: {remedy}")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"The tokenizer in {path} has {len(tokenizer):,} tokens, but the weights {rows:,}: {remedy}")
    return restored(model.eval().requires_grad_(False), tokenizer)


def build_encoder(folder: str | Path, what: str, remedy: str, state: Mapping[str, Tensor]) -> Encoder:
    """An encoder from a folder with config.json and the tokenizer, and from weights that another file contains.

    Raises:
        NotFoundError: If the folder or its config.json is missing.
        UserError: If the files cannot be read, or do not fit the weights.
    """
    import transformers

    path = require_folder(folder, what, remedy)
    try:
        with torch.random.fork_rng(devices=[]):  # random weights, which are replaced, leave a run's seed alone
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            model = transformers.AutoModel.from_config(config, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        result = model.load_state_dict(dict(state), strict=False)
    except Exception as error:  # see above; load_state_dict raises for tensors of other sizes
        raise UserError(f"{what} in {path} could not be read: {where_raised(error)}. {remedy}") from error
    other = [name for name in (*result.missing_keys, *result.unexpected_keys) if not any(p in name for p in _UNUSED)]
    if other:
        raise UserError(f"{what} in {path} does not fit the weights, which differ in {other[0]}: {remedy}")
    return restored(model.eval().requires_grad_(False), tokenizer)


def restored(model: Any, tokenizer: Any) -> Encoder:
    """An encoder with what published folders lack.

    - The maximum length: without tokenizer_config.json it is infinite, and a long report would index beyond the table
      of positions; that of RoBERTa and its kin has two rows that no token uses.
    """
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    if model.config.model_type in _OFFSET_POSITIONS:
        positions -= int(model.config.pad_token_id) + 1
    return Encoder(model, tokenizer, min(positions, int(tokenizer.model_max_length)))


def require_folder(folder: str | Path, what: str, remedy: str) -> Path:
    """Absolute path of a folder with config.json.

    Raises:
        NotFoundError: If the folder or the file does not exist.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise NotFoundError(f"{path}, the folder of {what}, does not exist: {remedy}")
    if not (path / "config.json").is_file():
        raise NotFoundError(f"config.json is not in {path}, the folder of {what}: {remedy}")
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without transformers' table of weights that are not used, and without its progress bar."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
