import pytest

MAX_TOKENS = 7


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """A trainer of TRL with a tiny language model, whose pure functions are compared with ours."""
    trl = pytest.importorskip("trl", minversion="1.16")
    datasets = pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        return trl.GRPOTrainer(
            model=GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=8, n_embd=4, n_layer=1, n_head=1)),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=trl.GRPOConfig(
                output_dir=str(tmp_path_factory.mktemp("trl")),
                per_device_train_batch_size=2,
                num_generations=2,
                max_completion_length=MAX_TOKENS,
                report_to=[],
                use_cpu=True,
                bf16=False,
            ),
            train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * 2}),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
        )
