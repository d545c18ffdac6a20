"""The policy: a vision-language model of the Qwen-VL families, and its reference.

Choices: image embeddings are computed once per study and handed on; a prompt is read once for all of its completions,
in the loss (`prefix.py`) as in the rollout; positions are always explicit (the model's own `rope_deltas` is stale
state, and a missing token-type mask falls back to one dimension silently); the reference is the policy with its adapter
off, so an SFT adapter is merged before a new one is added. Left out: other model families.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrg.datamodules.collate import Batch
from mrg.modules.attention import PackedPrompts, SharedAttention
from mrg.modules.head import TokenLogps, token_logps
from mrg.modules.prefix import Packed, pack
from mrg.modules.processor import StillImageProcessor


@dataclasses.dataclass
class Prompts:
    """The prompts of B studies, ready for the language model.

    Args:
        embeds: (B, P, D) with image embeddings in place.
        mask: (B, P) bool.
        positions: (3, B, P) int64, time, height and width of each token.
        visual: (B, P) bool, the image tokens.
        deepstack: For each of the first layers of a Qwen3-VL (V, D), what is added at the V image tokens after it.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    visual: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def rows(self, index: Tensor) -> Prompts:
        """The prompts of some studies, in the order of the index; one may come several times."""
        deepstack = self.deepstack
        if deepstack:
            sizes = self.visual.sum(1).tolist()
            chosen = index.tolist()
            parts = [torch.split(layer, sizes) for layer in deepstack]
            deepstack = tuple(torch.cat([part[i] for i in chosen]) for part in parts)
        return Prompts(self.embeds[index], self.mask[index], self.positions[:, index], self.visual[index], deepstack)

    def detached(self) -> Prompts:
        """The same as leaves, at which gradients are collected where they are wanted."""
        embeds, *deepstack = (x.detach().requires_grad_(x.requires_grad) for x in (self.embeds, *self.deepstack))
        return dataclasses.replace(self, embeds=embeds, deepstack=tuple(deepstack))

    def send_back(self, leaves: Prompts, backward: Callable[[Tensor], None]) -> None:
        """Send the gradients collected at `detached` leaves on to what these prompts were made by."""
        pairs = zip((self.embeds, *self.deepstack), (leaves.embeds, *leaves.deepstack), strict=True)
        parts = [(own * leaf.grad).sum() for own, leaf in pairs if leaf.grad is not None]
        if parts:
            backward(torch.stack(parts).sum())

    @property
    def next_position(self) -> Tensor:
        """(B,) position of the first completion token."""
        return self.positions.masked_fill(~self.mask, 0).amax((0, 2)) + 1


class Policy(nn.Module):
    """A vision-language model that writes reports.

    Args:
        model: A Qwen2-VL, Qwen2.5-VL or Qwen3-VL for conditional generation, or the same wrapped by peft.
        processor: Its processor.
        train_vision: Let gradients reach the vision tower.
        shared_prefix: Read a prompt once for all of its completions; otherwise once for each, which gives the same and
            is the reference of the tests.
    """

    def __init__(
        self, model: Any, processor: StillImageProcessor, train_vision: bool = False, shared_prefix: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.train_vision, self.shared_prefix = train_vision, shared_prefix
        self.kept: dict[str, Tensor] = {}

    @property
    def base(self) -> Any:
        """The transformers model under the adapter."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained."""
        return hasattr(self.model, "peft_config")

    @property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return int(self.processor.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """The token that fills a row after its end."""
        return int(self.processor.tokenizer.pad_token_id)

    @functools.cached_property
    def banned_ids(self) -> list[int]:
        """Ids that are never sampled: one image token in a completion breaks the next forward pass."""
        config, tokenizer = self.base.config, self.processor.tokenizer
        named = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|im_start|>"])
        ids = {config.image_token_id, config.video_token_id, *named}
        unused = range(len(tokenizer), config.text_config.vocab_size)
        return sorted({i for i in ids if i is not None} | set(unused))

    def keep_reference(self) -> None:
        """Copy the trained weights as they are now: a reference where there is no adapter to switch off."""
        self.kept = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the policy computes as the reference: its adapter is off, or its kept weights are in.

        Raises:
            ValueError: If there is neither.
        """
        if self.has_adapter:
            with self.model.disable_adapter():
                yield
            return
        if not self.kept:
            raise ValueError(
                "The reference is the policy with its adapter off, or a copy of it: set model.init_args.lora, "
                "reference to 'copy', or kl_coef to 0."
            )
        parameters = {name: p for name, p in self.named_parameters() if name in self.kept}
        present = {name: p.data for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self.kept[name].to(parameter.device)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = present[name]

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Within this context the adapter's update stands in the weights, so that a decoding step is less work.

        In float32 only, without autocast: bfloat16 would round most of a young adapter away. The weights themselves
        come back after it.
        """
        layers = _lora_layers(self.base) if self.has_adapter else {}
        weights = [layer.get_base_layer().weight for layer in layers.values()]
        exact = all(w.dtype == torch.float32 and not torch.is_autocast_enabled(w.device.type) for w in weights)
        if not layers or not exact:
            yield
            return
        kept = {name: layer.get_base_layer().weight.data for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                layer.get_base_layer().weight.data = kept[name] + layer.get_delta_weight(self.model.active_adapter)
            with self.model.disable_adapter():
                yield
        finally:
            for name, layer in layers.items():
                layer.get_base_layer().weight.data = kept[name]

    def embed(self, batch: Batch) -> Prompts:
        """Prompt embeddings with the image embeddings in place; the vision tower runs once per image."""
        base = self.base.model
        image_mask = batch.prompt_ids == self.base.config.image_token_id
        with contextlib.nullcontext() if self.train_vision else torch.no_grad():
            features = base.get_image_features(batch.pixel_values, batch.image_grid_thw, return_dict=True)
            images = torch.cat(list(features.pooler_output))
            deepstack = tuple(torch.cat(list(layer)) for layer in getattr(features, "deepstack_features", None) or ())
        if int(image_mask.sum()) != images.shape[0]:
            raise ValueError(
                f"The prompts hold {int(image_mask.sum())} image tokens, but the images give {len(images)}."
            )
        embeds = base.get_input_embeddings()(batch.prompt_ids)
        embeds = embeds.masked_scatter(image_mask[..., None], images.to(embeds.dtype))
        positions, _ = base.get_rope_index(
            batch.prompt_ids,
            mm_token_type_ids=image_mask.int(),
            image_grid_thw=batch.image_grid_thw,
            attention_mask=batch.prompt_mask,
        )
        return Prompts(embeds, batch.prompt_mask, positions, image_mask, deepstack)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        attention: Tensor | None = None,
        shared: SharedAttention | None = None,
        visual: Tensor | None = None,
        deepstack: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Last hidden states (R, L, D) of the language model.

        Args:
            embeds: (R, L, D).
            positions: (3, R, L).
            attention: (R, L) int64, 1 at real tokens; None where `shared` says who attends to whom.
            shared: Attention over shared prompts, or of a decoding step.
            visual: (R, L) bool, the image tokens; needed with `deepstack`.
            deepstack: See `Prompts`.
        """
        extra: dict[str, Any] = {} if shared is None else {"shared": shared}
        if deepstack:
            extra |= {"visual_pos_masks": visual, "deepstack_visual_embeds": list(deepstack)}
        # By place: transformers renames the cache's argument between the releases that are supported.
        output = self.base.model.language_model(None, attention, positions, None, embeds, use_cache=False, **extra)
        states: Tensor = output.last_hidden_state
        return states

    def hidden_packed(self, packed: Packed, shared: PackedPrompts, deepstack: tuple[Tensor, ...]) -> Tensor:
        """Last hidden states (L, D) of a packed row."""
        return self.hidden(packed.embeds, packed.positions, None, shared, packed.visual, deepstack)[0]

    def logps(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> TokenLogps:
        """Log-probability of each completion token under the distribution that is sampled from.

        The vocabulary's logits exist at completion tokens only, and not at all of them at once.

        Args:
            prompts: B prompts.
            completion_ids: (N, C), padded on the right; N a multiple of B, row n behind prompt n // (N / B).
            mask: (N, C) bool; every completion has a token.
            temperature: Logits are divided by it.

        Returns:
            Both (N, C), 0 where the mask is False.
        """
        if self.shared_prefix:
            packed = pack(prompts, completion_ids, mask, self.base.get_input_embeddings())
            hidden = self.hidden_packed(packed, PackedPrompts(packed.layout), prompts.deepstack)[packed.predicts]
        else:
            hidden = self._hidden_repeated(prompts, completion_ids, mask)
        head = self.base.lm_head.weight
        banned = torch.tensor(self.banned_ids, dtype=torch.long, device=mask.device)
        real = token_logps(hidden, head, completion_ids[mask], temperature, banned)
        return TokenLogps(
            *(torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_scatter(mask, x) for x in real)
        )

    def _hidden_repeated(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor) -> Tensor:
        """States (T, D) that predict the real tokens, each completion behind a prompt of its own."""
        num_rows, num_tokens = completion_ids.shape
        rows = torch.arange(num_rows, device=mask.device) // (num_rows // len(prompts.mask))
        repeated = prompts.rows(rows)
        steps = torch.arange(num_tokens, device=mask.device)
        after = (repeated.next_position[:, None] + steps).expand(3, -1, -1)
        embeds = torch.cat([repeated.embeds, self.base.get_input_embeddings()(completion_ids)], 1)
        positions = torch.cat([repeated.positions, after], 2)
        attention = torch.cat([repeated.mask, mask], 1).long()
        visual = torch.cat([repeated.visual, torch.zeros_like(mask)], 1)
        hidden = self.hidden(embeds, positions, attention, None, visual, repeated.deepstack)
        return hidden[:, -num_tokens - 1 : -1][mask]

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter alone in peft's form, which peft and vLLM load beside the base model.

        Raises:
            ValueError: If there is none.
        """
        if not self.has_adapter:
            raise ValueError("This policy has no adapter: it was trained without model.init_args.lora.")
        self.model.save_pretrained(folder)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint that transformers loads: the adapter merged where there is one, and the processor.

        Raises:
            ValueError: If the base is in 4 bits, into which an adapter cannot be merged without loss.
        """
        if getattr(self.base, "is_loaded_in_4bit", False):
            raise ValueError("The base is in 4 bits, so that nothing can be merged into it: write the adapter alone.")
        self.base.save_pretrained(folder, state_dict=merged_weights(self.model) if self.has_adapter else None)
        self.processor.tokenizer.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The transformers model's weights with the adapter's update added, on the CPU; the model stays as it is.

    Args:
        model: A peft model with LoRA on linear layers.
    """
    base = model.get_base_model()
    named = {name: value for name, value in base.state_dict().items() if ".lora_" not in name}
    weights = {name.replace(".base_layer.", "."): value.cpu() for name, value in named.items()}
    for name, layer in _lora_layers(base).items():
        weight = weights[f"{name}.weight"]
        update = layer.get_delta_weight(model.active_adapter).cpu()
        weights[f"{name}.weight"] = (weight.to(update.dtype) + update).to(weight.dtype)
    return weights


def _lora_layers(base: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
