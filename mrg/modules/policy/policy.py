"""The policy, a vision-language model, and its reference model.

Choices: image embeddings are computed once per study; a prompt is read once for all of its completions, in the loss and
in the rollout (`prefix/`); positions are always explicit, because the model's own `rope_deltas` is stale state and a
missing token-type mask silently gives one-dimensional positions; the reference is the policy with its adapter off, so
that an SFT adapter has to be merged before a new one is added. Differences between models are in `families.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.policy import lora
from mrg.modules.policy.families import FAMILIES, FastVLMProjector
from mrg.modules.policy.logps import TokenLogps, token_logps
from mrg.modules.policy.precision import CastAdapter
from mrg.modules.policy.ranks import exchange
from mrg.modules.policy.save import merge_note, save_merged
from mrg.modules.policy.vision_cache import VisionCache
from mrg.modules.prefix.attention import PackedPrompts, SharedAttention, hidden_states
from mrg.modules.prefix.flex import Flex, FlexPrompts
from mrg.modules.prefix.packing import Packed, Prompts, pack

SharedPrefix = Literal["auto", "required", "off"]
"""When a prompt is read once for all of its completions, see `Policy`."""


class Policy(nn.Module):
    """A vision-language model that writes reports.

    Args:
        model: A transformers model of one of `FAMILIES`, or a peft model around one.
        processor: Its processor.
        train_vision: Train the vision tower.
        shared_prefix: `"auto"` reads a prompt once for all of its completions whenever that computes the same as
            reading it once per completion; `"required"` raises an error otherwise; `"off"` reads it once per completion
            in the loss.
        train_projector: Train the projector of a FastVLM, whose tower is frozen unless `train_vision` is set.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        train_vision: bool = False,
        shared_prefix: SharedPrefix = "auto",
        train_projector: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.train_vision = train_vision
        self.shared_prefix: SharedPrefix = shared_prefix
        self.reference_weights: dict[str, Tensor] = {}
        self.cast_adapter = CastAdapter()
        self.sharded = self.gathered = False
        self.flex: Flex | None = None  # by which completions attend to their prompt in `logps`, if it is set
        self.entropy_gradient = False  # whether entropies have a gradient, for a bonus
        self.cache: VisionCache | None = None
        kind = FAMILIES[self.base.config.model_type]
        self.family = (FastVLMProjector if train_projector and not train_vision else kind)(self.base.config)
        self.adapts_norms = False

    def train(self, mode: bool = True) -> Policy:
        """Set training mode, except in a frozen vision tower.

        Batch norms of a trained tower keep their statistics, too, so that sampling and training agree, unless
        `adapts_norms` is set, which is meant for training the tower alone; frozen batch norms always keep them.
        """
        super().train(mode)
        for name in self.family.vision if mode else ():
            tower = getattr(self.base.model, name)
            tower.train(self.train_vision)
            for module in tower.modules():
                if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
                    module.train(self.adapts_norms and any(p.requires_grad for p in module.parameters()))
        return self

    def keep_images(self, folder: Path) -> None:
        """Cache image embeddings on disk, see `VisionCache`.

        Raises:
            ValueError: If the vision tower is trained, so that its embeddings change.
        """
        if self.train_vision:
            raise UserError("vision_cache requires a frozen vision tower: set model.init_args.vision_cache to ''.")
        self.cache = VisionCache(folder, self.family, self.base.model)

    @property
    def base(self) -> Any:
        """The transformers model, without the peft model around it."""
        return lora.base_model(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter is trained."""
        return lora.has_adapter(self.model)

    @functools.cached_property
    def eos_id(self) -> int:
        """The token that ends a completion."""
        return self.family.end_id(self.processor.tokenizer)

    @property
    def pad_id(self) -> int:
        """The token that pads a row after its end."""
        return int(self.processor.tokenizer.pad_token_id)

    @functools.cached_property
    def banned_ids(self) -> list[int]:
        """Ids that are never sampled: special tokens, and rows of the head without a token."""
        tokenizer, num_ids = self.processor.tokenizer, self.base.config.text_config.vocab_size
        ids = self.family.banned_ids(tokenizer) | set(range(len(tokenizer), num_ids))
        return sorted(i for i in ids if i < num_ids)

    def keep_reference(self) -> None:
        """Copy the trained weights as the reference model, for a policy without an adapter."""
        self.reference_weights = {name: p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Context in which the policy computes as the reference model: adapter off, or with the copied weights.

        Raises:
            ValueError: If there is neither an adapter nor a copy.
        """
        if self.has_adapter:
            with lora.adapter_off(self.model):
                yield
            return
        if not self.reference_weights:
            raise UserError(
                "The reference model is the policy with its adapter off, or a copy of it, but there is neither: set "
                "model.init_args.lora, kl.reference to 'copy', or kl.coef to 0."
            )
        parameters = {name: p for name, p in self.named_parameters() if name in self.reference_weights}
        present: dict[str, Tensor] = {}
        try:
            for name, parameter in parameters.items():
                present[name] = exchange(parameter, self.reference_weights[name])
            torch.clear_autocast_cache()  # it holds casts of the previous weights
            yield
        finally:
            for name, value in present.items():
                self.reference_weights[name] = exchange(
                    parameters[name], value
                )  # from now on, on the device of the weights
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Context in which the adapter's update is added to the weights, which makes decoding steps cheaper.

        In float32 without autocast only: bfloat16 would round most of a young adapter away, so that there the adapter
        is cast once instead, see `CastAdapter`. Weights change in place, because captured CUDA graphs read them at
        their addresses, and are restored exactly.
        """
        layers = list(lora.adapted_layers(self.base).values()) if self.has_adapter else []
        weights = [lora.base_weight(layer) for layer in layers]
        exact = all(w.dtype == torch.float32 and not torch.is_autocast_enabled(w.device.type) for w in weights)
        if not layers or not exact:
            with self.cast_adapter.within(matrix for layer in layers for matrix in lora.adapter_matrices(layer)):
                yield
            return
        saved: list[Tensor] = []
        try:
            for layer, weight in zip(layers, weights, strict=True):
                update = lora.weight_update(self.model, layer)
                saved.append(weight.data.clone())
                weight.data += update
            with lora.adapter_off(self.model):
                yield
        finally:
            for weight, original in zip(weights, saved, strict=False):  # memory may run out before all are saved
                weight.data.copy_(original)

    def embed(self, batch: Batch) -> Prompts:
        """Embed prompts with their images; the vision tower runs once per image."""
        base = self.base.model
        image_mask = batch.prompt_ids == self.base.config.image_token_id
        images, deepstack = self._images(batch)
        if int(image_mask.sum()) != images.shape[0]:
            raise UserError(
                f"The prompts have {int(image_mask.sum())} image tokens, but the images have {len(images)} embeddings."
            )
        # Some families have no row for the image token in their embedding.
        embeds = base.get_input_embeddings()(batch.prompt_ids.masked_fill(image_mask, 0))
        embeds = embeds.masked_scatter(image_mask[..., None], images.to(embeds.dtype))
        positions, blocks = self.family.positions(base, batch, image_mask), self.family.blocks(image_mask)
        return Prompts(embeds, batch.prompt_mask, positions, image_mask, deepstack, blocks)

    def _images(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image embeddings as in `Family.images`; empty if no study has an image."""
        if not len(batch.pixel_values):
            return torch.zeros(0, self.base.config.text_config.hidden_size, device=batch.prompt_ids.device), ()
        with contextlib.nullcontext() if self.train_vision else torch.no_grad():
            cache = self.cache
            images, deepstack = self.family.images(self.base.model, batch) if cache is None else cache.images(batch)
        return self.family.project(self.base.model, images), deepstack

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
            embeds: (R, L, D) input embeddings.
            positions: (A, R, L), see `Prompts`.
            mask: Result of `Family.row_mask`; None with `shared`.
            shared: Attention over shared prompts, or of a decoding step.
            visual: (R, L) bool, True at image tokens; required with `deepstack`.
            deepstack: Embeddings that the first layers add at image tokens.
        """
        if shared is not None:
            mask = self.family.no_mask(embeds)
        places = self.family.position_ids(positions)
        return hidden_states(self.base.model.language_model, embeds, places, mask, shared, visual, deepstack)

    def hidden_packed(self, packed: Packed, shared: PackedPrompts, deepstack: tuple[Tensor, ...]) -> Tensor:
        """Last hidden states (L, D) of a packed row."""
        return self.hidden(packed.embeds, packed.positions, None, shared, packed.visual, deepstack)[0]

    def logps(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> TokenLogps:
        """Log-probability of each completion token under the distribution that it is sampled from.

        Logits over the vocabulary are computed at completion tokens only, tile by tile.

        Args:
            prompts: B prompts.
            completion_ids: (N, C), padded on the right; N a multiple of B, row n continues prompt n // (N / B).
            mask: (N, C) bool, True at real tokens; each row has at least one.
            temperature: Sampling temperature, by which logits are divided.

        Returns:
            Log-probabilities and entropies, both (N, C) and 0 where the mask is False.
        """
        if self.shares(mask.shape[1], len(mask) > len(prompts.mask)):
            packed = pack(prompts, completion_ids, mask, self.base.get_input_embeddings())
            shared = PackedPrompts(packed.layout) if self.flex is None else FlexPrompts(packed.layout, self.flex)
            hidden = self.hidden_packed(packed, shared, prompts.deepstack)[packed.predicts]
        else:
            hidden = self._hidden_repeated(prompts, completion_ids, mask)
        head = self.base.lm_head.weight
        banned = torch.tensor(self.banned_ids, dtype=torch.long, device=mask.device)
        real = token_logps(hidden, head, completion_ids[mask], temperature, banned, self.entropy_gradient)
        return TokenLogps(
            *(torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_scatter(mask, x) for x in real)
        )

    def shares(self, num_tokens: int, several: bool) -> bool:
        """Whether prompts are read once for all of their completions.

        If each prompt has one completion, as in SFT, there is nothing to share, and a batch of rows is faster.

        Args:
            num_tokens: Longest completion in tokens.
            several: Whether prompts have more than one completion.

        Raises:
            ValueError: If `shared_prefix` is `"required"`, but completions are longer than the attention window.
        """
        window = self.family.window
        fits = window is None or num_tokens <= window
        if self.shared_prefix == "required" and not fits:
            raise UserError(
                f"Completions of {num_tokens} tokens cannot share a prompt, because the policy's attention window has "
                f"{window} tokens: lower model.init_args.max_new_tokens, or set shared_prefix to 'auto'."
            )
        return fits and (several or self.shared_prefix == "required") and self.shared_prefix != "off"

    def _hidden_repeated(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (T, D) that predict the real tokens, with the prompt repeated for each completion."""
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
        """Write the adapter alone in peft's format, which peft and vLLM load together with the base model.

        Raises:
            ValueError: If there is none.
        """
        if not self.has_adapter:
            raise UserError("This policy has no adapter: it was trained without model.init_args.lora.")
        self.model.save_pretrained(folder)

    def save(self, folder: str | Path, write: bool = True, max_new_tokens: int | None = None) -> None:
        """Write a checkpoint that transformers loads: the weights with the adapter merged, and the processor.

        Its generation settings are those of evaluation, greedy decoding without the banned tokens, and not the base's.

        If the base is in 4 bits, the adapter is merged into the unquantized base, which is loaded on the CPU.

        Args:
            folder: Folder of the checkpoint.
            write: Whether this rank writes; if layers are sharded, all ranks must call this.
            max_new_tokens: Largest number of tokens of a completion; None leaves it out of the generation settings.

        Raises:
            ValueError: If the base is in 4 bits and its checkpoint cannot be loaded.
        """
        save_merged(self.model, self.processor, folder, write, self.sharded, self.generation(max_new_tokens))

    def generation(self, max_new_tokens: int | None = None) -> GenerationConfig:
        """Generation settings of evaluation: greedy decoding without the banned tokens.

        Args:
            max_new_tokens: Largest number of tokens of a completion; None leaves it out.
        """
        return GenerationConfig(
            do_sample=False,
            eos_token_id=self.eos_id,
            pad_token_id=self.pad_id,
            suppress_tokens=self.banned_ids,
            max_new_tokens=max_new_tokens,
        )

    def merge_note(self) -> str:
        """Note in brackets for the line that names the saved policy; empty unless merging rounds its weights."""
        return merge_note(self.model, self.train_vision or isinstance(self.family, FastVLMProjector))
