"""The judge against a real vLLM server, whose grammar makes a random model answer in JSON."""

import json

import pytest

from mrg.errors import RunError
from mrg.metrics.__main__ import main
from mrg.metrics.judge import Judge
from tests.metrics.test_main import PREDS, rows
from tests.metrics.test_predictions import write
from tests.servers.engines import Server

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPT = "Count errors. {reference} {candidate}"
"""Short: a tiny vocabulary needs a token for every one to two characters."""


@pytest.fixture(scope="module")
def server(request, saved, tmp_path_factory):
    program = request.config.getoption("vllm") / "bin" / "vllm"
    if not program.is_file():
        pytest.skip(f"no vLLM at {program}: bash tests/servers/build_vllm.sh")
    started = Server(program, saved, tmp_path_factory.mktemp("logs") / "judge.log")
    try:
        started.wait()
        yield started
    finally:
        started.kill()


def test_answers_of_a_random_model_fit_the_schema_or_are_named(server, tmp_path):
    judge = Judge(server.url, "tiny", prompt=PROMPT, cache=tmp_path / "judge.jsonl", attempts=2, max_tokens=120)
    judge.check()
    target = ["Cardiomegaly.", "Edema.", "The lungs are clear.", "Small effusion."]
    scores = judge(PREDS, target)
    answers = [json.loads(line)["counts"] for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert answers, judge.failures  # the schema holds in at least one answer that is not truncated
    assert all(set(counts) == set(judge.counts) for counts in answers)
    assert all(0 <= value <= 99 for counts in answers for value in counts.values())
    assert [i for i, score in enumerate(scores) if score is None] == [i for i, _ in judge.failures]
    assert all(reason.startswith("the answer is not JSON") for _, reason in judge.failures)
    assert len(answers) + judge.usage["failed"] == 4
    assert judge.usage["asked"] == 4 + judge.usage["retried"]
    assert min(judge.usage["prompt_tokens"], judge.usage["completion_tokens"]) >= 4
    again = Judge(server.url, "tiny", prompt=PROMPT, cache=tmp_path / "judge.jsonl", attempts=1, max_tokens=120)
    assert again(PREDS, target) == scores  # greedy: what failed fails again, what is known is not asked
    assert again.usage["cached"] == len(answers)


def test_what_is_wrong_is_named(server, tmp_path, capsys):
    with pytest.raises(RunError, match="to serve 'large', but it serves tiny"):
        Judge(server.url, "large").check()
    # 512 tokens are the largest number of this server: the request is refused at once, without a retry.
    long = Judge(server.url, "tiny", prompt=PROMPT, max_tokens=1000)
    with pytest.raises(RunError, match="the server answers with status 400"):
        long(["Edema."], ["Edema."])
    assert (long.usage["asked"], long.usage["retried"]) == (1, 0)
    predictions = write(tmp_path / "predictions.jsonl", rows(PREDS))
    with pytest.raises(SystemExit):
        main([str(predictions), "--scores", "judge", "--judge", server.url, "large"])
    assert f"judge cannot be computed: Expected {server.url} to serve 'large'" in capsys.readouterr().err
