"""The policy: a Qwen2.5-VL-class model, its LoRA and its reference.

Choices: image embeddings are computed once per study and handed on; positions are always explicit (the model's own
`rope_deltas` is stale state, and a missing token-type mask falls back to one dimension silently); the reference is the
policy with its adapter off, so an SFT adapter is merged before a new one is added. Left out: other model families.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrg.datamodules.collate import Batch
from mrg.modules.processor import StillImageProcessor, load_processor

LANGUAGE_LINEARS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclasses.dataclass
class LoRA:
    """Low-rank adapters on every linear layer of the language model (Hu et al., 2021).

    Args:
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapter's input. 0 keeps rollout and training distributions equal.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0


@dataclasses.dataclass
class Prompts:
    """The prompts of B studies, ready for the language model.

    Args:
        embeds: (B, P, D) with image embeddings in place.
        mask: (B, P) bool.
        positions: (3, B, P) int64, time, height and width of each token.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor

    def rows(self, index: Tensor) -> Prompts:
        """The prompts of some studies, in the order of the index; one may come several times."""
        return Prompts(self.embeds[index], self.mask[index], self.positions[:, index])

    @property
    def next_position(self) -> Tensor:
        """(B,) position of the first completion token."""
        return self.positions.masked_fill(~self.mask, 0).amax((0, 2)) + 1


class Policy(nn.Module):
    """A vision-language model that writes reports.

    Args:
        model: A `Qwen2_5_VLForConditionalGeneration`, or the same wrapped by peft.
        processor: Its processor.
        train_vision: Let gradients reach the vision tower.
    """

    def __init__(self, model: Any, processor: StillImageProcessor, train_vision: bool = False) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.train_vision = train_vision

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

    @property
    def banned_ids(self) -> list[int]:
        """Ids that are never sampled: one image token in a completion breaks the next forward pass."""
        config, tokenizer = self.base.config, self.processor.tokenizer
        named = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>", "<|im_start|>"])
        ids = {config.image_token_id, config.video_token_id, *named}
        unused = range(len(tokenizer), config.text_config.vocab_size)
        return sorted({i for i in ids if i is not None} | set(unused))

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the policy computes as the reference: its adapter is off.

        Raises:
            ValueError: If there is no adapter to switch off.
        """
        if not self.has_adapter:
            raise ValueError(
                "The reference is the policy with its adapter off: set model.init_args.lora, or kl_coef 0."
            )
        with self.model.disable_adapter():
            yield

    def embed(self, batch: Batch) -> Prompts:
        """Prompt embeddings with the image embeddings in place; the vision tower runs once per image."""
        base = self.base.model
        image_mask = batch.prompt_ids == self.base.config.image_token_id
        with contextlib.nullcontext() if self.train_vision else torch.no_grad():
            features = base.get_image_features(batch.pixel_values, batch.image_grid_thw, return_dict=True)
            images = torch.cat(list(features.pooler_output))
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
        return Prompts(embeds, batch.prompt_mask, positions)

    def completion_positions(self, prompts: Prompts, num_tokens: int) -> Tensor:
        """(3, B, num_tokens): all three axes count on from the prompt's largest position."""
        steps = torch.arange(num_tokens, device=prompts.mask.device)
        return (prompts.next_position[:, None] + steps).expand(3, -1, -1)

    def hidden(self, embeds: Tensor, positions: Tensor, attention: Tensor, cache: Any = None) -> Tensor:
        """Last hidden states (B, L, D) of the language model.

        Args:
            embeds: (B, L, D).
            positions: (3, B, L).
            attention: (B, cached + L) int64, 1 at real tokens.
            cache: Keys and values of earlier tokens; the new ones are added to it.
        """
        # By place: transformers renames the cache's argument between the releases that are supported.
        output = self.base.model.language_model(None, attention, positions, cache, embeds, use_cache=cache is not None)
        states: Tensor = output.last_hidden_state
        return states

    def logps(self, prompts: Prompts, completion_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of each completion token under the distribution that is sampled from.

        Rows are whole: prompt n is followed by completion n. The vocabulary's logits exist at completion tokens only.

        Args:
            prompts: N prompts.
            completion_ids: (N, C), padded on the right.
            mask: (N, C) bool.
            temperature: Logits are divided by it.

        Returns:
            (N, C) float32; 0 where the mask is False.
        """
        base, num_tokens = self.base, completion_ids.shape[1]
        embeds = torch.cat([prompts.embeds, base.get_input_embeddings()(completion_ids)], 1)
        positions = torch.cat([prompts.positions, self.completion_positions(prompts, num_tokens)], 2)
        attention = torch.cat([prompts.mask, mask], 1).long()
        hidden = self.hidden(embeds, positions, attention)[:, -num_tokens - 1 : -1][mask]
        # Only real tokens reach the head: padding would cost a vocabulary of logits each.
        logits = base.lm_head(hidden).float() / temperature
        logits[:, self.banned_ids] = -torch.inf
        real = torch.log_softmax(logits, -1).gather(1, completion_ids[mask][:, None])[:, 0]
        return torch.zeros(mask.shape, dtype=real.dtype, device=real.device).masked_scatter(mask, real)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint that transformers loads: the adapter merged where there is one, and the processor."""
        self.base.save_pretrained(folder, state_dict=merged_weights(self.model) if self.has_adapter else None)
        self.processor.tokenizer.save_pretrained(folder)
        self.processor.image_processor.save_pretrained(folder)


def merged_weights(model: Any) -> dict[str, Tensor]:
    """The transformers model's weights with the adapter's update added, on the CPU; the model stays as it is.

    Args:
        model: A peft model with LoRA on linear layers.
    """
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    named = {name: value for name, value in base.state_dict().items() if ".lora_" not in name}
    weights = {name.replace(".base_layer.", "."): value.cpu() for name, value in named.items()}
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            weight = weights[f"{name}.weight"]
            update = module.get_delta_weight(model.active_adapter).cpu()
            weights[f"{name}.weight"] = (weight.to(update.dtype) + update).to(weight.dtype)
    return weights


def load_policy(
    path: str,
    lora: LoRA | None = None,
    train_vision: bool = False,
    dtype: str = "auto",
    max_pixels: int = 0,
    gradient_checkpointing: bool = False,
) -> Policy:
    """Load a Qwen2.5-VL-class checkpoint.

    Args:
        path: Hub id or local folder.
        lora: Train adapters of this shape on the language model; `None` trains the language model itself.
        train_vision: Train the vision tower as well.
        dtype: `"float32"`, `"bfloat16"` or `"auto"` for the checkpoint's own.
        max_pixels: Pixel budget of one image; 0 keeps the checkpoint's own.
        gradient_checkpointing: Recompute the language model's activations in the backward pass: less memory, more time.

    Raises:
        ValueError: If the checkpoint cannot be found or lacks weights: a tower of random weights would train silently.
    """
    from transformers import AutoModelForImageTextToText

    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"Expected model.init_args.dtype to be 'auto', 'float32' or 'bfloat16', but got {dtype!r}.")
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if path.startswith((".", "/", "runs/")) or Path(path).exists():
        config = Path(path) / "config.json"
        if not config.is_file():
            raise ValueError(
                f"Policy {path!r} is not a checkpoint: {config} does not exist. Check model.init_args.policy."
            )
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind != "qwen2_5_vl":
            raise ValueError(f"Policy {path!r} is of type {kind!r}; expected 'qwen2_5_vl' in {config}.")
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype if dtype == "auto" else getattr(torch, dtype), output_loading_info=True
        )
        processor = load_processor(path, max_pixels)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Policy {path!r} cannot be loaded ({reason}). Check model.init_args.policy.") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"Policy {path!r} lacks {len(missing)} weights, {missing[0]} first: the checkpoint is incomplete."
        )
    if gradient_checkpointing:
        # On the language model alone: on the whole model it would pull the frozen vision tower into autograd.
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return prepare(model, processor, lora, train_vision)


def prepare(model: Any, processor: StillImageProcessor, lora: LoRA | None, train_vision: bool) -> Policy:
    """Wrap a model: add the adapter where there is one, and freeze what is not trained."""
    model.config.use_cache = False
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        shape = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=LANGUAGE_LINEARS
        )
        model = get_peft_model(model, shape)
    policy = Policy(model, processor, train_vision)
    for name, parameter in policy.named_parameters():
        if ".visual." in name:
            parameter.requires_grad_(train_vision)
    # A loaded model is in eval mode, in which gradient checkpointing and dropout are off; Lightning leaves it there.
    policy.train()
    return policy
