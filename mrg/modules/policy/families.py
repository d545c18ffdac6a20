"""Differences between families of vision-language models: images, positions, attention masks, special tokens.

A family can be supported if it takes explicit positions and its attention is causal after the prompt, so that a prompt
can be read once for all of its completions. `FAMILIES` lists those that tests compare with the model's own forward
pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.policy.processor import load_fixed_size_processor, load_qwen_processor, load_tile_processor
from mrg.modules.prefix.packing import attention_mask

LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""Regular expression for the layers that LoRA adapts, whose names are the same in all families."""


class Family:
    """A family with images of a fixed size, one-dimensional positions and causal attention.

    Args:
        config: The model's configuration.

    Raises:
        ValueError: If the language model has a feature that is not supported.
    """

    vision: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    """Names of the modules that compute image embeddings; frozen unless `train_vision` is set."""
    texts: tuple[str, ...] = ()
    """Supported types of the language model; empty if the family has only one."""
    special: tuple[str, ...] = ()
    """Tokens that are never sampled, in addition to the image token and the tokenizer's special tokens."""
    end = ""
    """The token that ends a completion, if it is not the tokenizer's `eos_token`."""

    def __init__(self, config: Any) -> None:
        self.config = config
        text = config.text_config
        if self.texts and text.model_type not in self.texts:
            raise UserError(
                f"Expected the language model of a {config.model_type} to be of type {' or '.join(self.texts)}, but "
                f"got {text.model_type!r}."
            )
        for name in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
            if getattr(text, name, None):
                raise UserError(f"A language model with text_config.{name} is not supported.")

    @staticmethod
    def load_processor(path: str, max_pixels: int) -> Any:
        """Load the processor of a checkpoint, with a pixel budget of one image; 0 uses the checkpoint's own."""
        return load_fixed_size_processor(path, max_pixels)

    def end_id(self, tokenizer: Any) -> int:
        """Id of the token that ends a completion."""
        return int(tokenizer.get_vocab().get(self.end, tokenizer.eos_token_id))

    def banned_ids(self, tokenizer: Any) -> set[int]:
        """Ids that are never sampled: an image token in a completion would break the next forward pass.

        Neither are special tokens other than the end, which would be missing from the decoded text that is rewarded.
        For a Qwen this includes `<|endoftext|>` if completions end with `<|im_end|>`, and vice versa.
        """
        vocabulary = tokenizer.get_vocab()
        named = {vocabulary[name] for name in self.special if name in vocabulary}
        marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        ids = {self.config.image_token_id, getattr(self.config, "video_token_id", None), *named, *marks}
        return {i for i in ids if i is not None and i != self.end_id(tokenizer)}

    @property
    def window(self) -> int | None:
        """Sliding-window size in tokens, including the token itself; None without sliding-window layers."""
        text = self.config.text_config
        kinds = getattr(text, "layer_types", None)
        window: int | None = getattr(text, "sliding_window", None)
        return window if kinds is None or "sliding_attention" in kinds else None

    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Image embeddings (V, D) of all images, concatenated, and the deepstack embeddings, see `Prompts`."""
        features = base.get_image_features(batch.pixel_values, return_dict=True)
        return torch.cat(list(features.pooler_output)), ()

    def project(self, base: Any, images: Tensor) -> Tensor:
        """Embeddings of what `images` returns, if a part that is trained comes after the modules of `vision`."""
        return images

    def positions(self, base: Any, batch: Batch, visual: Tensor) -> Tensor:
        """Positions (A, B, P) of the prompts, see `Prompts`; `visual` is (B, P) bool, True at image tokens."""
        return (batch.prompt_mask.long().cumsum(1) - 1).clamp(min=0)[None]

    def blocks(self, visual: Tensor) -> Tensor | None:
        """Images (B, P) to which the tokens belong, see `Prompts`; None for causal prompts."""
        return None

    def position_ids(self, positions: Tensor) -> Tensor:
        """Positions (A, R, L) in the form that the language model takes."""
        return positions[0]

    def no_mask(self, embeds: Tensor) -> Any:
        """Mask argument for a pass over shared prompts, whose attention ignores it.

        transformers passes on a mask of four dimensions, and would otherwise build one of the squared row length.
        """
        return embeds.new_zeros(1, 1, 1, 1)

    def row_mask(self, real: Tensor, blocks: Tensor | None) -> Any:
        """Mask argument for rows of one prompt and one completion.

        Args:
            real: (R, L) bool, True at real tokens.
            blocks: (R, L), see `Prompts`.
        """
        return real.long()


class QwenVL(Family):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, positions in time, height and width."""

    vision = ("visual",)
    special = ("<|vision_start|>", "<|vision_end|>", "<|im_start|>")

    @staticmethod
    @override
    def load_processor(path: str, max_pixels: int) -> Any:
        return load_qwen_processor(path, max_pixels)

    @override
    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        features = base.get_image_features(batch.pixel_values, batch.image_grid_thw, return_dict=True)
        deepstack = getattr(features, "deepstack_features", None) or ()
        # A list with one tensor per image, or one tensor in the oldest supported releases of transformers.
        layers = (layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in deepstack)
        return torch.cat(list(features.pooler_output)), tuple(layers)

    @override
    def positions(self, base: Any, batch: Batch, visual: Tensor) -> Tensor:
        positions: Tensor = base.get_rope_index(
            batch.prompt_ids,
            mm_token_type_ids=visual.int(),
            image_grid_thw=batch.image_grid_thw,
            attention_mask=batch.prompt_mask,
        )[0]
        return positions

    @override
    def position_ids(self, positions: Tensor) -> Tensor:
        return positions

    @override
    def no_mask(self, embeds: Tensor) -> Any:
        return None


class Llava(Family):
    """LLaVA-1.5 and models in its format, which have a CLIP or SigLIP vision tower."""

    texts = ("llama", "mistral", "qwen2")
    special = ("<s>", "<unk>", "<pad>", "<|im_start|>")


class FastVLM(Family):
    """FastVLM: a convolutional tower, one token for each place of its last map, before a Qwen2 or a Llama."""

    texts = ("qwen2", "llama")
    special = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>")

    @override
    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return base.multi_modal_projector(self.places(base, batch)).flatten(0, 1), ()

    def places(self, base: Any, batch: Batch) -> Tensor:
        """Places (V, P, C) of the tower's last map, for V images.

        Convolutions are fastest with the channels last, and do not cast pixels to their own type.
        """
        dtype = next(base.vision_tower.parameters()).dtype
        pixels = batch.pixel_values.to(dtype).contiguous(memory_format=torch.channels_last)
        places: Tensor = base.vision_tower(pixels, return_dict=True).last_hidden_state
        return places.flatten(2).permute(0, 2, 1)


class FastVLMProjector(FastVLM):
    """FastVLM whose projector is trained behind a frozen tower: `images` are what the tower computes."""

    vision = ("vision_tower",)

    @override
    def images(self, base: Any, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.places(base, batch).flatten(0, 1), ()

    @override
    def project(self, base: Any, images: Tensor) -> Tensor:
        projected: Tensor = base.multi_modal_projector(images)
        return projected


class InternVL(Family):
    """InternVL in the format of transformers (checkpoints whose names end in -hf): images in tiles of one size."""

    texts = ("qwen2", "qwen3")
    special = ("<s>", "<unk>", "<|im_start|>", "<img>", "</img>", "<video>")

    @staticmethod
    @override
    def load_processor(path: str, max_pixels: int) -> Any:
        return load_tile_processor(path, max_pixels)


class Gemma3(Family):
    """Gemma 3 and MedGemma: tokens of an image attend to each other; most layers have a sliding window."""

    special = ("<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<start_of_image>", "<end_of_image>")
    end = "<end_of_turn>"

    @override
    def blocks(self, visual: Tensor) -> Tensor:
        # Images are separated by text.
        first = visual & ~torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        return (first.long().cumsum(1) - 1).masked_fill(~visual, -1)

    @override
    def no_mask(self, embeds: Tensor) -> Any:
        return {"full_attention": None, "sliding_attention": None}  # transformers uses a dictionary as it is

    @override
    def row_mask(self, real: Tensor, blocks: Tensor | None) -> Any:
        assert blocks is not None
        # A padded token attends to itself, so that its softmax is not empty.
        itself = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
        full, sliding = ((attention_mask(blocks, w) & real[:, None] | itself)[:, None] for w in (None, self.window))
        return {"full_attention": full, "sliding_attention": sliding}


FAMILIES: dict[str, type[Family]] = {
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "qwen3_vl": QwenVL,
    "gemma3": Gemma3,
    "llava": Llava,
    "fast_vlm": FastVLM,
    "internvl": InternVL,
}
"""Supported families by `model_type`."""
