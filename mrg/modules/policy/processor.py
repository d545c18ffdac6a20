"""Processors for still images, loaded or built without torchvision, and every private part of transformers' own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, AutoTokenizer, InternVLProcessor, PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from mrg.datamodules.collate import TAGS
from mrg.errors import UserError

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE_TOKEN,
    VIDEO_TOKEN,
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class StillImageProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """The Qwen-VL processor without its video processor, which requires torchvision.

    transformers derives the parts of a processor from the signature of `__init__`.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any):
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class StillInternVLProcessor(InternVLProcessor):  # type: ignore[misc]
    """The InternVL processor without its video processor, which requires torchvision."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_image_token, self.end_image_token = tokenizer.start_image_token, tokenizer.end_image_token
        self.start_image_token_id, self.end_image_token_id = tokenizer.convert_tokens_to_ids(
            [self.start_image_token, self.end_image_token]
        )
        self.image_token, self.video_token = tokenizer.context_image_token, tokenizer.video_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.multimodal_pattern = re.compile(f"(?P<image>{re.escape(self.image_token)})")

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:
        """Save files that also load as an `InternVLProcessor`."""
        result = super().save_pretrained(save_directory, **kwargs)
        for file in Path(save_directory).glob("*_config.json"):
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace('"StillInternVLProcessor"', '"InternVLProcessor"'), encoding="utf-8")
        return result


def load_tile_processor(path: str, max_pixels: int = 0) -> StillInternVLProcessor:
    """Load the processor of an InternVL, which splits an image into tiles of one size.

    Args:
        path: Hub id or local folder.
        max_pixels: Pixel budget of one image, rounded down to whole tiles (at least one), not counting the thumbnail;
            0 uses the checkpoint's own.
    """
    processor: StillInternVLProcessor = StillInternVLProcessor.from_pretrained(path, backend="pil")
    if max_pixels:
        size = processor.image_processor.size
        processor.image_processor.max_patches = max(1, max_pixels // (size["height"] * size["width"]))
    _complete(processor)
    return processor


def load_fixed_size_processor(path: str, max_pixels: int = 0) -> ProcessorMixin:
    """Load the processor of a checkpoint with images of a fixed size.

    Args:
        path: Hub id or local folder.
        max_pixels: Has to be 0.

    Raises:
        ValueError: If `max_pixels` is not 0, or the checkpoint has no patch size.
    """
    if max_pixels:
        raise UserError("its images have a fixed size: set model.init_args.max_pixels to 0")
    processor = AutoProcessor.from_pretrained(path, backend="pil")
    if getattr(processor, "patch_size", 0) is None:
        raise UserError("its processor_config.json lacks patch_size")
    _complete(processor)
    return processor


def _complete(processor: Any) -> None:
    """Set padding and chat template if the checkpoint does not.

    Raises:
        ValueError: If there is no chat template.
    """
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    if processor.chat_template is None:
        raise UserError("it has no chat template")


def close_think(processor: Any) -> None:
    """Remove a `<think>` that a chat template opens at the end of the prompt, as those of Thinking models do.

    It belongs to the completion, which would otherwise have no opening tag, and so no valid format. The template is
    wrapped, so that it renders everything else as before, and is saved with the policy.
    """
    template, message = processor.chat_template, [{"role": "user", "content": [{"type": "text", "text": ""}]}]
    prompt = str(processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    if not isinstance(template, str) or not prompt.rstrip().endswith("<think>"):
        return
    # Block tags on lines of their own leave the white space of the template as it is: Jinja would strip one newline.
    whole = template[:-1] if template.endswith("\n") else template
    processor.chat_template = processor.tokenizer.chat_template = (
        f"{{% set prompt %}}\n{whole}{{% endset %}}\n"
        "{% if add_generation_prompt and prompt.rstrip().endswith('<think>') %}"
        "{{ prompt.rstrip()[:-7] }}{% else %}{{ prompt }}{% endif %}"
    )


def special_tags(tokenizer: Any) -> list[str]:
    """The tags of the think/report format that a tokenizer has as special tokens, which are never sampled."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return [tag for tag in TAGS if tag in special]


def save_processor(processor: Any, folder: str | Path) -> None:
    """Save a processor so that `load_policy` and transformers can load it."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is not None:  # it would save how its last texts were padded
        backend.no_padding()
        backend.no_truncation()
    if isinstance(processor, StillImageProcessor):
        processor.tokenizer.save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)


def load_qwen_processor(path: str, max_pixels: int = 0) -> StillImageProcessor:
    """Load the processor of a Qwen-VL.

    Args:
        path: Hub id or local folder.
        max_pixels: Pixel budget of one image; 0 uses the checkpoint's own.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    image_processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    if max_pixels:
        image_processor.size = {
            "shortest_edge": min(image_processor.size["shortest_edge"], max_pixels),
            "longest_edge": max_pixels,
        }
    template = tokenizer.chat_template
    template_file = Path(path) / "chat_template.jinja"
    if template is None and template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    return StillImageProcessor(image_processor, tokenizer, chat_template=template or CHAT_TEMPLATE)


def build_processor(
    corpus: Iterable[str],
    vocab_size: int = 1024,
    max_pixels: int = 112 * 112,
    merge_size: int = 2,
    patch_size: int = 14,
) -> StillImageProcessor:
    """Build a Qwen-VL processor with a byte-level BPE tokenizer trained on reports.

    The same corpus in the same order gives the same tokenizer, so that a run can be rebuilt from its configuration.

    Args:
        corpus: Training reports.
        vocab_size: Maximum size of the vocabulary, including special tokens.
        max_pixels: Pixel budget of one image.
        merge_size: Side of the square of patches that becomes one image token.
        patch_size: Side of a patch in pixels: 14 for Qwen2-VL and Qwen2.5-VL, 16 for Qwen3-VL.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    # Tags are one token each, which keeps the completions of a tiny policy short, but not special: they are text.
    bpe.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"shortest_edge": min(56 * 56, max_pixels), "longest_edge": max_pixels}
    image_processor = Qwen2VLImageProcessorPil(size=size, merge_size=merge_size, patch_size=patch_size)
    return StillImageProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
