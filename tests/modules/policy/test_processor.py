"""The parts of transformers that `mrg.modules.policy.processor` uses."""

import importlib
import inspect

import pytest
import transformers

WHERE = "which mrg/modules/policy/processor.py needs: adapt it there."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers", "Qwen2_5_VLProcessor"),
        ("transformers", "InternVLProcessor"),
        ("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
        ("transformers.processing_utils", "ProcessorMixin"),
    ],
)
def test_transformers_still_has(module, name):
    version = transformers.__version__
    assert hasattr(importlib.import_module(module), name), f"transformers {version} has no {module}.{name}, {WHERE}"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("Qwen2_5_VLProcessor", ("image_token", "image_token_id", "video_token", "video_token_id")),
        (
            "InternVLProcessor",
            ("image_seq_length", "start_image_token", "end_image_token", "image_token", "video_token"),
        ),
    ],
)
def test_a_processor_without_a_video_part_still_sets_what_the_original_sets(name, attributes):
    source = inspect.getsource(getattr(transformers, name))
    missing = [attribute for attribute in attributes if f"self.{attribute}" not in source]
    assert not missing, f"transformers {transformers.__version__}: {name} no longer sets {missing}, {WHERE}"
