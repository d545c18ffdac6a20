"""What a vLLM engine, a server or one in this process, is asked for and returns.

Images are given in the size in which the policy reads them, so that an engine does not resize them; the tokens of the
prompt come back and must equal the policy's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.policy.policy import Policy
from mrg.modules.rollout.sampling import Rollout

Written = tuple[list[list[int]], list[list[float]]]
"""Tokens of N completions, and their log-probabilities."""


class Contents:
    """Contents of the chat messages of a batch; the images of a study are read and encoded once, when it is asked for.

    Args:
        policy: Policy whose image size is used.
        image_part: Function that makes a part of a message from an image.
    """

    def __init__(self, policy: Policy, image_part: Callable[[Image.Image], dict[str, Any]]) -> None:
        self.policy, self.image_part = policy, image_part
        self._batch: Callable[[], Batch | None] = lambda: None
        self._known: dict[int, list[dict[str, Any]]] = {}

    def of(self, batch: Batch, row: int) -> list[dict[str, Any]]:
        """Content for a study, its images in place of their placeholders.

        Args:
            batch: Batch of studies; the contents of the one before are dropped.
            row: Index of the study in the batch.
        """
        if self._batch() is not batch:
            self._batch, self._known = weakref.ref(batch), {}
        if row not in self._known:
            first = sum(map(len, batch.views[:row]))
            images = iter([self._image(batch, first + i, view) for i, view in enumerate(batch.views[row])])
            self._known[row] = [next(images) if part["type"] == "image" else part for part in batch.contents[row]]
        return self._known[row]

    def _image(self, batch: Batch, index: int, view: Any) -> dict[str, Any]:
        image = view.load()
        if batch.image_grid_thw is not None:
            processor = self.policy.processor.image_processor
            _, rows, columns = batch.image_grid_thw[index].tolist()
            image = image.resize((columns * processor.patch_size, rows * processor.patch_size), processor.resample)
        return self.image_part(image)


def sampling_options(policy: Policy, group_size: int, temperature: float, seed: int) -> dict[str, Any]:
    """Sampling parameters under the names that vLLM's requests and its `SamplingParams` share.

    Every setting is given, so that a checkpoint's generation_config.json has no effect on sampling.
    """
    return {
        "n": group_size,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed % 2**31,
        "logit_bias": dict.fromkeys(policy.banned_ids, -100),
        "stop_token_ids": [policy.eos_id],
    }


def prompt_tokens(batch: Batch, row: int) -> list[int]:
    """Tokens of a study's prompt, without padding."""
    tokens: list[int] = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
    return tokens


def check_prompt(read: Sequence[int], prompt: Sequence[int], study: str, engine: str) -> None:
    """Check that an engine read the prompt that the policy reads.

    Raises:
        UserError: If it did not.
    """
    if list(read) != list(prompt):
        raise UserError(
            f"Study {study}: the rollout {engine} reads another prompt than the policy ({len(read)} tokens, "
            f"not {len(prompt)}): serve the checkpoint of model.init_args.policy with its own chat template and "
            "image settings."
        )


def to_rollout(
    policy: Policy, tokens: Sequence[Sequence[int]], logps: Sequence[Sequence[float]], device: torch.device
) -> Rollout:
    """Make a rollout of what an engine sampled.

    Args:
        policy: Policy with the tokenizer.
        tokens: N lists of tokens.
        logps: Their log-probabilities.
        device: Device of the rollout.
    """
    lengths = torch.tensor([len(row) for row in tokens])
    shape = (len(tokens), int(lengths.max()))
    ids, values = torch.full(shape, policy.pad_id), torch.zeros(shape)
    for row, (given, scores) in enumerate(zip(tokens, logps, strict=True)):
        ids[row, : len(given)] = torch.tensor(list(given))
        values[row, : len(given)] = torch.tensor(list(scores))
    mask = torch.arange(shape[1]) < lengths[:, None]
    ended = ((ids == policy.eos_id) & mask).any(1)
    tokenizer = policy.processor.tokenizer
    texts = [tokenizer.decode(list(row), skip_special_tokens=True).strip() for row in tokens]
    return Rollout(ids.to(device), mask.to(device), values.to(device), texts, ~ended.to(device))
