import pickle

import pytest
import torch
from torchmetrics.classification import BinaryAccuracy

from mrg.metrics import CEF1, MCCS, RulesLabeler
from mrg.metrics.scorer import ReportScore
from mrg.metrics.trl import RewardError, as_reward, completion_text, format_reward

TARGET = "The heart is enlarged. No pneumothorax."
SIMILAR = (2**-0.5 - 0.5) / 0.5  # one of two findings: cosine 1 / sqrt 2, margin .5
REPORTS = [TARGET, "The heart is enlarged.", "The heart is normal in size. No pneumothorax.", "", " \n"]
REWARDS = [1, SIMILAR, 0, 0, 0]
FORMS = {
    "strings": lambda text: text,
    "messages": lambda text: [{"role": "assistant", "content": text}],
    "parts": lambda text: [
        {"role": "assistant",
         "content": [{"type": "text", "text": text[:5]}, {"type": "image"}, {"type": "text", "text": text[5:]}]},
    ],
    "tool calls": lambda text: [
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "No pneumothorax."},
        {"role": "assistant", "content": text},
        {"role": "tool", "content": "Edema."},
    ],
}  # fmt: skip


def overlap(preds, target):
    return [len(set(p.split()) & set(t.split())) / len(set(t.split())) for p, t in zip(preds, target, strict=True)]


def call(reward, completions, **columns):
    """As TRL 1.16 calls a reward."""
    num = len(completions)
    given = {"target": [TARGET] * num, "completion_ids": [[0]] * num, "trainer_state": None, "log_metric": print}
    return reward(prompts=["?"] * num, completions=completions, **{**given, **columns})


@pytest.mark.parametrize("form", FORMS)
def test_by_hand_in_every_form(form):
    reward = as_reward(MCCS(labeler=RulesLabeler()))
    assert reward.__name__ == "MCCS"
    rewards = call(reward, [FORMS[form](text) for text in REPORTS])
    assert rewards == pytest.approx(REWARDS)
    assert all(type(value) is float for value in rewards)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_report_section_is_scored(form):
    reward = as_reward(MCCS(labeler=RulesLabeler()), think="required")
    texts = [
        f"<think>No effusion.</think><report>{TARGET}</report>",
        f"<report>{TARGET}</report>",  # right findings, no thinking: the format reward's business
        f"<think>{TARGET}</think>",
        TARGET,
        f"<report>{TARGET}</report><report>Edema.</report>",
        "<think>x</think><report> </report>",
    ]
    completions = [FORMS[form](text) for text in texts]
    assert call(reward, completions) == [1, 1, 0, 0, 0, 0]
    assert call(format_reward(), completions) == [1, 0, 0, 0, 0, 0]
    assert call(format_reward("absent"), completions) == [0, 1, 0, 0, 0, 0]


def test_silence_is_not_scored_at_all():
    """Not even where the reference states nothing, which makes MCCS 1, or by a scorer that likes it."""
    seen = []

    def generous(preds, target):
        seen.extend(preds)
        return [0.5] * len(preds)

    assert call(as_reward(generous), ["", " \n", "Edema."]) == [0, 0, 0.5]
    assert seen == ["Edema."]
    assert call(as_reward(generous), [""]) == [0]
    assert call(as_reward(MCCS(labeler=RulesLabeler())), ["", "Lungs."], target=["Clear.", "Clear."]) == [0, 1]


def test_every_kind_of_metric():
    target = ["no effusion", "edema"]
    texts = ["effusion no", "no edema"]
    for metric in (overlap, ReportScore(overlap), lambda preds, target: torch.tensor(overlap(preds, target))):
        assert call(as_reward(metric), texts, target=target) == pytest.approx([1, 1])
    reward = as_reward(CEF1(average="example", labeler=RulesLabeler()), target="reference", name="ce")
    assert reward.__name__ == "ce"
    assert call(reward, ["Edema. Effusion.", "Mass."], reference=["Edema.", "No mass."]) == pytest.approx([2 / 3, 0])
    assert as_reward(ReportScore(overlap, name="words")).__name__ == "words"
    assert as_reward(overlap).__name__ == "overlap"


def test_a_metric_keeps_its_state():
    metric = MCCS(labeler=RulesLabeler())
    call(as_reward(metric), REPORTS)
    assert metric.update_count == 0
    assert not metric.update_called


def test_rewards_do_not_depend_on_batch_or_order():
    reward = as_reward(MCCS(labeler=RulesLabeler()))
    together = call(reward, REPORTS)
    assert together == [call(reward, [text])[0] for text in REPORTS]
    assert call(reward, REPORTS[::-1]) == together[::-1]


def test_pickle():
    reward = pickle.loads(pickle.dumps(as_reward(ReportScore(overlap), think="absent")))
    assert reward.__name__ == "overlap"
    assert call(reward, [f"<report>{TARGET}</report>"]) == [1]
    assert call(pickle.loads(pickle.dumps(format_reward("absent"))), ["<report>x</report>"]) == [1]


def test_wrong_metrics():
    for metric in (MCCS, "mccs", None):
        with pytest.raises(TypeError, match="`metric` to be a metric or a scorer"):
            as_reward(metric)
    with pytest.raises(TypeError, match="BinaryAccuracy has no method `scores`"):
        as_reward(BinaryAccuracy())
    with pytest.raises(ValueError, match="higher_is_better=True, but that of errors is False"):
        as_reward(ReportScore(overlap, name="errors", higher_is_better=False))
    for make in (lambda: as_reward(overlap, think="maybe"), lambda: format_reward("maybe")):
        with pytest.raises(ValueError, match="`think` to be 'required' or 'absent', but got 'maybe'"):
            make()


def test_wrong_columns():
    reward = as_reward(overlap, target="findings")
    with pytest.raises(ValueError, match=r"a column `findings` .* besides the prompt are: image, target\. Rename"):
        call(reward, ["x"], image=[0])
    with pytest.raises(ValueError, match="are: none"):
        reward(completions=["x"], prompts=["?"], trainer_state=None)
    with pytest.raises(ValueError, match="`findings` to hold 2 reports, but got 1"):
        call(reward, ["x", "y"], findings=["x"])
    with pytest.raises(RewardError, match=r"completion 1 \(study b\): the column `findings` holds NoneType"):
        call(reward, ["x", "y"], findings=["x", None], id=["a", "b"])


@pytest.mark.parametrize("word", ["nan", "None", "N/A", "null", "NaN", "-"])
def test_words_for_nothing_earn_nothing(word, caplog):
    """Without a reference there is no reward; a completion without a report gets 0."""
    reward = as_reward(MCCS(labeler=RulesLabeler()))
    texts, target = ["The lungs are clear.", word, word, "Clear."], [word, "Clear.", word, "Clear."]
    with caplog.at_level("WARNING", "mrg"):
        assert call(reward, texts, target=target, id=list("abcd")) == [None, 0, None, 1]
        call(reward, texts, target=target, id=list("abcd"))
    assert (reward.num_empty, reward.num_without_reference) == (4, 4)
    assert [record.getMessage() for record in caplog.records] == [
        "Reward `MCCS`: completion 1 (study b) is empty: 0.",
        "Reward `MCCS`: completion 0 (study a) has no reference in `target`: its reward is None.",
    ]


def test_failure_stops_with_the_study_and_is_never_zero():
    def broken(preds, target):
        if any("odd" in text for text in preds):
            raise OSError("cannot read this")
        return [0.5] * len(preds)

    completions = ["x", "", "odd", "x"]
    message = "Reward `broken` failed on completion 2"
    for columns, study in (({"study_id": "abcd"}, r" \(study c\)"), ({"id": "efgh"}, r" \(study g\)"), ({}, "")):
        with pytest.raises(
            RewardError, match=rf"{message}{study}: OSError: cannot read this \(.*test_trl.py, line \d+, in broken\)"
        ):
            call(as_reward(broken), completions, **{name: list(ids) for name, ids in columns.items()})

    def crowded(preds, target):
        if len(preds) > 2:
            raise OSError("too many")
        return [0.5] * len(preds)

    with pytest.raises(
        RewardError, match=r"failed on 3 completions, each of which can be scored alone: OSError: too many"
    ):
        call(as_reward(crowded), ["x", "y", "", "z"])


def test_what_could_only_fail_in_the_first_step_fails_at_once():
    with pytest.raises(ValueError, match="MCCS to have a labeler"):
        as_reward(MCCS())
    with pytest.raises(ValueError, match="'example' for scores per report, but it is 'micro'"):
        as_reward(CEF1(labeler=RulesLabeler()))


def test_values_that_are_not_finite_or_missing():
    reward = as_reward(MCCS(empty="nan", labeler=RulesLabeler()))
    with pytest.raises(RewardError, match=r"completion 2 \(study c\): its value is nan, not a finite number"):
        call(reward, ["Edema.", "", "Lungs."], target=["Edema.", "Clear.", "Clear."], id=["a", "b", "c"])
    with pytest.raises(RewardError, match="to return 1 values, one per report, but got 0"):
        call(as_reward(lambda preds, target: []), ["x"])


@pytest.mark.parametrize("completion", [None, 3, {"content": "x"}, [{"role": "assistant", "content": 3}], ["x"]])
def test_wrong_completions(completion):
    with pytest.raises(RewardError, match=r"completion 1 \(study b\): Expected"):
        call(as_reward(overlap), ["x", completion], id=["a", "b"])
    with pytest.raises(TypeError, match="Expected"):
        call(format_reward(), [completion])


def test_messages_without_a_reply():
    assert completion_text([]) == ""
    assert completion_text([{"role": "tool", "content": "Edema."}]) == ""
    assert completion_text([{"content": "Edema."}]) == "Edema."


def tiny_tokenizer():
    """Every token is a word, so that a random policy writes findings."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "<pad> <eos> <unk> user assistant : No no edema effusion cardiomegaly pneumothorax fracture atelectasis ."
    vocabulary = {word: index for index, word in enumerate(words.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        chat_template="{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}",
    )


def tiny_policy(num_words):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=num_words, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    return GPT2LMHeadModel(config)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # between TRL and transformers
@pytest.mark.parametrize("conversational", [False, True], ids=["strings", "messages"])
def test_a_step_of_trl(tmp_path, monkeypatch, conversational):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")

    target = ["no edema . effusion . cardiomegaly .", "fracture . no pneumothorax . no effusion ."]
    prompt = [[{"role": "user", "content": "edema"}]] * 2 if conversational else ["edema :", "effusion :"]
    dataset = datasets.Dataset.from_dict({"prompt": prompt, "target": target, "study_id": ["a", "b"]})
    reward = as_reward(MCCS(margin=0.0, labeler=RulesLabeler()))
    calls = []

    def recorded(completions, **columns):
        rewards = reward(completions=completions, **columns)
        calls.append((completions, columns, rewards))
        return rewards

    recorded.__name__ = reward.__name__
    tokenizer = tiny_tokenizer()
    trainer = trl.GRPOTrainer(
        model=tiny_policy(len(tokenizer)),
        reward_funcs=[recorded, format_reward("absent")],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            max_steps=1,
            logging_steps=1,
            reward_weights=[0.75, 0.25],
            learning_rate=1e-2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()

    ((completions, columns, rewards),) = calls
    assert len(completions) == 8
    assert isinstance(completions[0], list) == conversational
    # Independent of the reward: the metric on the texts that TRL says were written.
    texts = tokenizer.batch_decode(columns["completion_ids"], skip_special_tokens=True)
    assert sorted(set(columns["study_id"])) == ["a", "b"]
    assert columns["target"] == [target["ab".index(study)] for study in columns["study_id"]]
    expected = MCCS(margin=0.0, labeler=RulesLabeler()).scores(texts, columns["target"])
    assert rewards == pytest.approx(expected.tolist())
    assert expected.std() > 0

    log = trainer.state.log_history[0]
    assert log["rewards/MCCS/mean"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert log["rewards/format/mean"] == 0
    assert log["reward"] == pytest.approx(0.75 * float(expected.mean()), abs=1e-6)
    assert torch.isfinite(torch.tensor([log["loss"], log["grad_norm"]])).all()
    assert log["grad_norm"] > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_what_trl_passes_is_no_column_of_the_dataset():
    names = ("prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
    given = {name: ["?"] for name in names}
    with pytest.raises(ValueError, match=r"besides the prompt are: none\. Rename"):
        as_reward(overlap)(completions=["x"], **given)
    with pytest.raises(ValueError, match=r"besides the prompt are: prompt\. Rename"):
        as_reward(overlap)(completions=["x"], prompt=["?"])


def test_the_study_of_a_completion_is_that_of_its_id():
    def fails(preds, target):
        raise KeyError("boom")

    for columns, place in (({}, "completion 0"), ({"id": [7]}, r"completion 0 \(study 7\)"),
                           ({"id": [7], "study_id": ["a"]}, r"completion 0 \(study a\)")):  # fmt: skip
        with pytest.raises(RewardError, match=rf"Reward `fails` failed on {place}: KeyError: 'boom' \("):
            as_reward(fails)(completions=["x"], target=["y"], **columns)


def test_messages_without_a_reply_have_no_text():
    assert completion_text([]) == completion_text([{"role": "user", "content": "x"}]) == ""
    assert completion_text([{"content": "x"}]) == "x"
    assert completion_text([{"role": "assistant", "content": None}]) == ""
    for wrong in (3, [3], [{"role": "assistant", "content": 3}], [{"content": [{"type": "text"}]}]):
        with pytest.raises(TypeError, match="Expected"):
            completion_text(wrong)
