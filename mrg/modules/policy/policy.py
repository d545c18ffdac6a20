"""The policy: a vision-language model, and its reference.

Choices: image embeddings are computed once per study and handed on; a prompt is read once for all of its completions,
in the loss (`prefix.py`) as in the rollout; positions are always explicit (the model's own `rope_deltas` is stale
state, and a missing token-type mask falls back to one dimension silently); the reference is the policy with its adapter
off, so an SFT adapter is merged before a new one is added. What differs between models stands in `families.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.policy.autocast import CastAdapter
from mrg.modules.policy.families import FAMILIES
from mrg.modules.policy.fsdp import exchange, full
from mrg.modules.policy.logps import TokenLogps, token_logps
from mrg.modules.policy.precision import name_precision
from mrg.modules.policy.processor import save_processor
from mrg.modules.policy.quantization import whole_base
from mrg.modules.policy.vision_cache import VisionCache
from mrg.modules.prefix.attention import PackedPrompts, SharedAttention
from mrg.modules.prefix.packing import Packed, pack
from mrg.modules.prefix.prompts import Prompts


class Policy(nn.Module):
    """A vision-language model that writes reports.

    Args:
        model: A model for conditional generation of one of `FAMILIES`, or the same wrapped by peft.
        processor: Its processor.
        train_vision: Let gradients reach the vision tower.
        shared_prefix: `"auto"` reads a prompt once for all of its completions where that gives the same as reading it
            once for each; `"required"` refuses where it does not; `"off"` reads it once for each in the loss.
    """

    def __init__(self, model: Any, processor: Any, train_vision: bool = False, shared_prefix: str = "auto") -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.train_vision, self.shared_prefix = train_vision, shared_prefix
        self.kept: dict[str, Tensor] = {}
        self.cast_adapter = CastAdapter()
        self.sharded = self.gathered = False
        self.cache: VisionCache | None = None
        self.family = FAMILIES[self.base.config.model_type](self.base.config)

    def keep_images(self, folder: Path) -> None:
        """Keep image embeddings on disk, see `VisionCache`.

        Raises:
            ValueError: If the vision tower is trained: what it makes of an image changes.
        """
        if self.train_vision:
            raise UserError("A trained vision tower has nothing to keep: set model.init_args.vision_cache to ''.")
        self.cache = VisionCache(folder, self.family, self.base.model)

    @property
    def base(self) -> Any:
        """The transformers model under the adapter."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained."""
        return hasattr(self.model, "peft_config")

    @functools.cached_property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return self.family.end_id(self.processor.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token that fills a row after its end."""
        return int(self.processor.tokenizer.pad_token_id)

    @functools.cached_property
    def banned_ids(self) -> list[int]:
        """Ids that are never sampled: marks of images and turns, and rows of the head that stand for no token."""
        tokenizer, num_ids = self.processor.tokenizer, self.base.config.text_config.vocab_size
        ids = self.family.banned_ids(tokenizer) | set(range(len(tokenizer), num_ids))
        return sorted(i for i in ids if i < num_ids)

    def keep_reference(self) -> None:
        """Copy the trained weights as they are now: a reference where there is no adapter to switch off.

        The copy stays where they are now, until `reference` takes it to where they are then.
        """
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
            raise UserError(
                "The reference is the policy with its adapter off, or a copy of it: set model.init_args.lora, "
                "reference to 'copy', or kl_coef to 0."
            )
        parameters = {name: p for name, p in self.named_parameters() if name in self.kept}
        present: dict[str, Tensor] = {}
        try:
            for name, parameter in parameters.items():
                present[name] = exchange(parameter, self.kept[name])
            torch.clear_autocast_cache()  # its casts are of the weights that were there
            yield
        finally:
            for name, value in present.items():
                self.kept[name] = exchange(parameters[name], value)  # on the weights' device from the first round on
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Within this context the adapter's update stands in the weights, so that a decoding step is less work.

        In float32 only, without autocast: bfloat16 would round most of a young adapter away. The weights themselves
        come back after it. They change where they are, for a captured graph reads them at their address. Under autocast
        the adapter is cast once, see `CastAdapter`.
        """
        layers = _lora_layers(self.base) if self.has_adapter else {}
        weights = [layer.get_base_layer().weight for layer in layers.values()]
        exact = all(w.dtype == torch.float32 and not torch.is_autocast_enabled(w.device.type) for w in weights)
        if not layers or not exact:
            with self.cast_adapter.within(layers.values()):
                yield
            return
        kept: dict[str, Tensor] = {}
        try:
            for name, layer in layers.items():
                weight = layer.get_base_layer().weight.data
                update = layer.get_delta_weight(self.model.active_adapter).detach()
                kept[name] = weight.clone()
                weight += update
            with self.model.disable_adapter():
                yield
        finally:
            for name, weight in kept.items():
                layers[name].get_base_layer().weight.data.copy_(weight)

    def embed(self, batch: Batch) -> Prompts:
        """Prompt embeddings with the image embeddings in place; the vision tower runs once per image."""
        base = self.base.model
        image_mask = batch.prompt_ids == self.base.config.image_token_id
        images, deepstack = self._images(batch)
        if int(image_mask.sum()) != images.shape[0]:
            raise UserError(
                f"The prompts hold {int(image_mask.sum())} image tokens, but the images give {len(images)}."
            )
        # Some families have no row for the image token in their embedding.
        embeds = base.get_input_embeddings()(batch.prompt_ids.masked_fill(image_mask, 0))
        embeds = embeds.masked_scatter(image_mask[..., None], images.to(embeds.dtype))
        positions, blocks = self.family.positions(base, batch, image_mask), self.family.blocks(image_mask)
        return Prompts(embeds, batch.prompt_mask, positions, image_mask, deepstack, blocks)

    def _images(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Family.images`; none where no study has one."""
        if not len(batch.pixel_values):
            return torch.zeros(0, self.base.config.text_config.hidden_size, device=batch.prompt_ids.device), ()
        with contextlib.nullcontext() if self.train_vision else torch.no_grad():
            return self.family.images(self.base.model, batch) if self.cache is None else self.cache.images(batch)

    def hidden(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Any = None,
        shared: SharedAttention | None = None,
        visual: Tensor | None = None,
        deepstack: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Last hidden states (R, L, D) of the language model.

        Args:
            embeds: (R, L, D).
            positions: (A, R, L), see `Prompts`.
            mask: As `Family.row_mask` makes it; None where `shared` says who attends to whom.
            shared: Attention over shared prompts, or of a decoding step.
            visual: (R, L) bool, the image tokens; needed with `deepstack`.
            deepstack: See `Prompts`.
        """
        extra: dict[str, Any] = {}
        if shared is not None:
            mask, extra = self.family.no_mask(embeds), {"shared": shared}
        places = self.family.position_ids(positions)
        if deepstack:
            extra |= {"visual_pos_masks": visual, "deepstack_visual_embeds": list(deepstack)}
        # By place: transformers renames the cache's argument between the releases that are supported.
        output = self.base.model.language_model(None, mask, places, None, embeds, use_cache=False, **extra)
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
        if self.shares(mask.shape[1], len(mask) > len(prompts.mask)):
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

    def shares(self, num_tokens: int, several: bool) -> bool:
        """Whether a prompt is read once for all of its completions of so many tokens or less.

        Where each prompt has one completion (supervision) there is nothing to share, and rows of a batch are faster
        than one attention per prompt.
        """
        window = self.family.window
        fits = window is None or num_tokens <= window
        if self.shared_prefix == "required" and not fits:
            raise UserError(
                f"A completion of {num_tokens} tokens is longer than the policy's window of attention, {window}, so "
                "that it cannot share its prompt: lower model.init_args.max_new_tokens, or set shared_prefix to 'auto'."
            )
        return fits and (several or self.shared_prefix == "required") and self.shared_prefix != "off"

    def _hidden_repeated(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor) -> Tensor:
        """States (T, D) that predict the real tokens, each completion behind a prompt of its own."""
        num_rows, num_tokens = completion_ids.shape
        rows = torch.arange(num_rows, device=mask.device) // (num_rows // len(prompts.mask))
        repeated = prompts.rows(rows)
        steps = torch.arange(num_tokens, device=mask.device)
        after = (repeated.next_position[:, None] + steps).expand(len(repeated.positions), -1, -1)
        embeds = torch.cat([repeated.embeds, self.base.get_input_embeddings()(completion_ids)], 1)
        positions = torch.cat([repeated.positions, after], 2)
        visual = torch.cat([repeated.visual, torch.zeros_like(mask)], 1)
        blocks = None if repeated.blocks is None else F.pad(repeated.blocks, (0, num_tokens), value=-1)
        rows_mask = self.family.row_mask(torch.cat([repeated.mask, mask], 1), blocks)
        hidden = self.hidden(embeds, positions, rows_mask, None, visual, repeated.deepstack)
        return hidden[:, -num_tokens - 1 : -1][mask]

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter alone in peft's form, which peft and vLLM load beside the base model.

        Raises:
            ValueError: If there is none.
        """
        if not self.has_adapter:
            raise UserError("This policy has no adapter: it was trained without model.init_args.lora.")
        self.model.save_pretrained(folder)

    def save(self, folder: str | Path, write: bool = True) -> None:
        """Write a checkpoint that transformers loads: the adapter merged where there is one, and the processor.

        Where the base is in 4 bits, the adapter is merged into the whole base, which is loaded again on the CPU.

        Args:
            folder: Where to.
            write: False on all ranks but one; where layers are sharded, all ranks must call this.

        Raises:
            ValueError: If the base is in 4 bits and its checkpoint is no longer there.
        """
        if not (write or self.sharded):
            return
        base = whole_base(self.base) if getattr(self.base, "is_loaded_in_4bit", False) else self.base
        weights = merged_weights(self.model, write, base) if self.has_adapter or self.sharded else None
        if write:
            base.save_pretrained(folder, state_dict=weights)
            name_precision(base, Path(folder))
            save_processor(self.processor, folder)


def merged_weights(model: Any, keep: bool = True, base: Any = None) -> dict[str, Tensor]:
    """The transformers model's weights with the adapter's update added, on the CPU; `model` stays as it is.

    Args:
        model: A transformers model, or a peft model with LoRA on linear layers.
        keep: False returns nothing, on ranks that only help to gather what is sharded.
        base: The transformers model to add to where it is another than the model's own. It is changed: two copies of a
            large one may not fit.
    """
    own = model.get_base_model() if hasattr(model, "peft_config") else model
    base = own if base is None else base
    named = {name: value for name, value in base.state_dict().items() if ".lora_" not in name}
    weights = {}
    for name, value in named.items():
        whole = full(value)
        if keep:
            weights[name.replace(".base_layer.", ".")] = whole.cpu()
    if not keep:
        return weights
    for name, layer in _lora_layers(own).items():
        weight = weights[f"{name}.weight"]
        update = layer.get_delta_weight(model.active_adapter).cpu()
        merged = (weight.to(update.dtype) + update).to(weight.dtype)
        weights[f"{name}.weight"] = merged if base is own else weight.copy_(merged)
    return weights


def _lora_layers(base: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
