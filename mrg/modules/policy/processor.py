"""Processors for still images, loaded or built without torchvision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, AutoTokenizer, InternVLProcessor, PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

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
TAGS = ("<think>", "</think>", "<report>", "</report>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class StillImageProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """The Qwen-VL processor without its video part.

    transformers reads a processor's parts off the signature of `__init__`; the video processor needs torchvision, which
    still images do not.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any):
        self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


class StillInternVLProcessor(InternVLProcessor):  # type: ignore[misc]
    """The InternVL processor without its video part, for the same reason."""

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
        """Write what loads as an `InternVLProcessor` as well."""
        result = super().save_pretrained(save_directory, **kwargs)
        for file in Path(save_directory).glob("*_config.json"):
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace('"StillInternVLProcessor"', '"InternVLProcessor"'), encoding="utf-8")
        return result


def load_tile_processor(path: str, max_pixels: int = 0) -> StillInternVLProcessor:
    """Load the processor of an InternVL, which cuts an image into tiles of one size.

    Args:
        path: Hub id or local folder.
        max_pixels: Pixel budget of one image, in whole tiles, the small picture of the whole not counted; 0 keeps the
            checkpoint's own.
    """
    processor: StillInternVLProcessor = StillInternVLProcessor.from_pretrained(path, backend="pil")
    if max_pixels:
        size = processor.image_processor.size
        processor.image_processor.max_patches = max(1, max_pixels // (size["height"] * size["width"]))
    _complete(processor)
    return processor


def load_fixed_size_processor(path: str, max_pixels: int = 0) -> ProcessorMixin:
    """Load the processor of a checkpoint whose images have one size.

    Args:
        path: Hub id or local folder.
        max_pixels: 0.

    Raises:
        ValueError: If there is a pixel budget.
    """
    if max_pixels:
        raise UserError("its images have one size: set model.init_args.max_pixels to 0")
    processor = AutoProcessor.from_pretrained(path, backend="pil")
    if getattr(processor, "patch_size", 0) is None:
        raise UserError("its processor_config.json lacks patch_size")
    _complete(processor)
    return processor


def _complete(processor: Any) -> None:
    """Settle what checkpoints leave open.

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


def save_processor(processor: Any, folder: str | Path) -> None:
    """Write what `load_policy` and transformers load a processor from."""
    backend = getattr(processor.tokenizer, "backend_tokenizer", None)
    if backend is not None:  # it remembers how its last texts were padded, which would be written, too
        backend.no_padding()
        backend.no_truncation()
    if isinstance(processor, StillImageProcessor):
        processor.tokenizer.save_pretrained(folder)
    else:
        processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)


def load_processor(path: str, max_pixels: int = 0) -> StillImageProcessor:
    """Load the processor of a Qwen-VL.

    Args:
        path: Hub id or local folder.
        max_pixels: Pixel budget of one image; 0 keeps the checkpoint's own.
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
    """Train a byte-level BPE tokenizer on reports and put it beside an image processor.

    The same corpus in the same order gives the same tokenizer, so that a run can be rebuilt from its configuration.

    Args:
        corpus: The training reports.
        vocab_size: Upper bound of the vocabulary, special tokens included.
        max_pixels: Pixel budget of one image.
        merge_size: Patches along each side of the square that becomes one image token.
        patch_size: Pixels along each side of a patch: 14 for a Qwen2-VL or Qwen2.5-VL, 16 for a Qwen3-VL.
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
    # Whole tags keep a tiny policy's completions short; they are ordinary text, not special tokens.
    bpe.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"shortest_edge": min(56 * 56, max_pixels), "longest_edge": max_pixels}
    image_processor = Qwen2VLImageProcessorPil(size=size, merge_size=merge_size, patch_size=patch_size)
    return StillImageProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)
