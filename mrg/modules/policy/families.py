"""What differs between families of vision-language models: images, positions, who sees whom, special tokens.

A family is supported if its prompt can be read once for all completions: explicit positions, and attention that is
causal outside of the prompt. `FAMILIES` lists those whose tests compare both ways with the model's own forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.policy.processor import load_fixed_size_processor, load_processor, load_tile_processor
from mrg.modules.prefix.layout import sees

LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The layers that LoRA adapts; every family's language model has them under these names."""


class Family:
    """Images through a tower of a fixed size and a projector, a token's place as its position, causal attention.

    Args:
        config: The model's configuration.

    Raises:
        ValueError: If its language model computes something that is not supported.
    """

    vision: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    """Modules of the model that make image embeddings; frozen unless the vision tower is trained."""
    texts: tuple[str, ...] = ()
    """Types of language models under this family that are supported; empty where there is only one."""
    special: tuple[str, ...] = ()
    """Tokens that are never sampled, beside the image token and what the tokenizer itself calls special."""
    end = ""
    """The token that ends a completion where it is not the tokenizer's own."""

    def __init__(self, config: Any) -> None:
        self.config = config
        text = config.text_config
        if self.texts and text.model_type not in self.texts:
            raise UserError(
                f"A {config.model_type} whose language model is of type {text.model_type!r} is not supported; "
                f"expected {' or '.join(self.texts)}."
            )
        for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            if getattr(text, name, None):
                raise UserError(f"A language model with text_config.{name} is not supported.")

    @staticmethod
    def load_processor(path: str, max_pixels: int) -> Any:
        """Load the processor of a checkpoint; see `load_processor`."""
        return load_fixed_size_processor(path, max_pixels)

    def end_id(self, tokenizer: Any) -> int:
        """The token that ends a completion."""
        return int(tokenizer.get_vocab().get(self.end, tokenizer.eos_token_id))

    def banned_ids(self, tokenizer: Any) -> set[int]:
        """Ids that are never sampled: an image token in a completion breaks the next forward pass.

        Nor is any special token but the end: it is left out of the text that is rewarded, and the row goes on after it.
        A Qwen's `<|endoftext|>` is one of these where `<|im_end|>` ends a completion, and the other way round.
        """
        vocabulary = tokenizer.get_vocab()
        named = {vocabulary[name] for name in self.special if name in vocabulary}
        marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = {self.config.image_token_id, getattr(self.config, "video_token_id", None), *named, *marks}
        return {i for i in ids if i is not None and i != self.end_id(tokenizer)}

    @property
    def window(self) -> int | None:
        """How many tokens one sees, itself included, in layers of sliding-window attention; None without them."""
        text = self.config.text_config
        kinds = getattr(text, "layer_types", None)
        window: int | None = getattr(text, "sliding_window", None)
        return window if kinds is None or "sliding_attention" in kinds else None

    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image embeddings (V, D) of all images in a row, and what is added to them after the first layers."""
        features = base.get_image_features(batch.pixel_values, return_dict=True)
        return torch.cat(list(features.pooler_output)), ()

    def positions(self, base: Any, batch: Batch, visual: Tensor) -> Tensor:
        """(A, B, P) int64 positions of the prompts' tokens; see `Prompts`."""
        return (batch.prompt_mask.long().cumsum(1) - 1).clamp(min=0)[None]

    def blocks(self, visual: Tensor) -> Tensor | None:
        """(B, P) int64 which image a token is of; see `Prompts`."""
        return None

    def position_ids(self, positions: Tensor) -> Tensor:
        """What the language model takes for (A, R, L) positions."""
        return positions[0]

    def no_mask(self, embeds: Tensor) -> Any:
        """The mask for a pass over shared prompts, whose attention reads none.

        One of four dimensions is handed on as it is; without one, a mask as large as the square of a row would be made.
        """
        return embeds.new_zeros(1, 1, 1, 1)

    def row_mask(self, real: Tensor, blocks: Tensor | None) -> Any:
        """The mask for rows of a prompt and a completion each.

        Args:
            real: (R, L) bool.
            blocks: (R, L), see `Prompts`.
        """
        return real.long()


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, and positions in time, height and width."""

    vision = ("visual",)
    special = ("<|vision_start|>", "<|vision_end|>", "<|im_start|>")

    @staticmethod
    def load_processor(path: str, max_pixels: int) -> Any:
        """See `Family`."""
        return load_processor(path, max_pixels)

    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Family`."""
        features = base.get_image_features(batch.pixel_values, batch.image_grid_thw, return_dict=True)
        deepstack = getattr(features, "deepstack_features", None) or ()
        # Cut by image, or whole in the oldest releases of transformers that are supported.
        layers = (layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in deepstack)
        return torch.cat(list(features.pooler_output)), tuple(layers)

    def positions(self, base: Any, batch: Batch, visual: Tensor) -> Tensor:
        """See `Family`."""
        positions: Tensor = base.get_rope_index(
            batch.prompt_ids,
            mm_token_type_ids=visual.int(),
            image_grid_thw=batch.image_grid_thw,
            attention_mask=batch.prompt_mask,
        )[0]
        return positions

    def position_ids(self, positions: Tensor) -> Tensor:
        """See `Family`."""
        return positions

    def no_mask(self, embeds: Tensor) -> Any:
        """See `Family`."""
        return None


class Llava(Family):
    """LLaVA-1.5 and what is published in its format: a CLIP or SigLIP tower before a language model."""

    texts = ("llama", "mistral", "qwen2")
    special = ("<s>", "<unk>", "<pad>", "<|im_start|>")


class InternVL(Family):
    """InternVL in the format of transformers (the checkpoints whose names end in -hf): images in tiles of one size."""

    texts = ("qwen2", "qwen3")
    special = ("<s>", "<unk>", "<|im_start|>", "<img>", "</img>", "<video>")

    @staticmethod
    def load_processor(path: str, max_pixels: int) -> Any:
        """See `Family`."""
        return load_tile_processor(path, max_pixels)


class Gemma3(Family):
    """Gemma 3 with images, and MedGemma: an image's tokens see each other; most layers have a window."""

    special = ("<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<start_of_image>", "<end_of_image>")
    end = "<end_of_turn>"

    def blocks(self, visual: Tensor) -> Tensor:
        """See `Family`: the text between two images parts them."""
        first = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        return (first.long().cumsum(1) - 1).masked_fill(~visual, -1)

    def no_mask(self, embeds: Tensor) -> Any:
        """See `Family`: a dictionary is taken as it is."""
        return {"full_attention": None, "sliding_attention": None}

    def row_mask(self, real: Tensor, blocks: Tensor | None) -> Any:
        """See `Family`."""
        assert blocks is not None
        # A padded token sees itself, so that its row of the softmax is not empty.
        itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        full, sliding = ((sees(blocks, w) & real[:, None] | itself)[:, None] for w in (None, self.window))
        return {"full_attention": full, "sliding_attention": sliding}


FAMILIES: dict[str, type[Family]] = {
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": QwenVL,
    "gemma3": Gemma3,
    "llava": Llava,
    "internvl": InternVL,
}
"""Types of checkpoints that are supported."""
