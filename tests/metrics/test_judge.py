"""A judge over HTTP, asked through a server in a thread whose answers each test prepares."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from mrg.errors import RunError, UserError
from mrg.metrics.judge import COUNTS, Judge, matched_share, repeats, without_answer

VALID = {"matched": 3, "significant": 1, "insignificant": 2}


@pytest.fixture
def server():
    """Answers with `answers`, a function from the request to status and content, and keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.requests.append((self.path, request, self.headers.get("Authorization")))
            status, content = self.server.answers(request)
            body = {
                "choices": [{"message": {"content": content}}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5},
            }
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode() if content is not None else b"<html>")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answers = [], lambda request: (200, json.dumps(VALID))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def text_of(request):
    return request["messages"][0]["content"]


def test_the_request_asks_for_counts_by_a_schema(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = Judge(server.url, "tiny", key_variable="JUDGE_KEY")
    assert judge(["Edema {reference}."], ["No {candidate}."]) == [0.75]
    path, request, key = server.requests[0]
    assert (path, request["model"], request["temperature"], key) == (
        "/v1/chat/completions",
        "tiny",
        0.0,
        "Bearer secret",
    )
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(COUNTS)
    assert schema["properties"]["matched"] == {"type": "integer", "minimum": 0, "maximum": 99}
    assert text_of(request).endswith("Reference:\nNo {candidate}.\n\nCandidate:\nEdema {reference}.")
    assert judge.usage["prompt_tokens"] == 7


def test_the_score_by_hand():
    assert matched_share({"matched": 1, "significant": 3, "insignificant": 9}) == 0.25
    assert matched_share({"matched": 0, "significant": 2}) == 0
    assert matched_share({"matched": 0, "significant": 0}) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no JSON", "the answer is not JSON: 'no JSON'"),
        ('{"matched": 1}', "expected the counts matched, significant, insignificant, but got"),
        (json.dumps(VALID | {"matched": -1}), "expected matched to be an integer from 0 to 99, but got -1"),
        (json.dumps(VALID | {"matched": True}), "expected matched to be an integer from 0 to 99, but got True"),
        (None, "the answer is no chat completion: '<html>'"),
    ],
)
def test_nonsense_is_counted_and_named_and_never_zero(server, caplog, content, reason):
    server.answers = lambda request: (200, content if "bad" in text_of(request) else json.dumps(VALID))
    judge = Judge(server.url, "tiny", attempts=2)
    assert judge(["good", "bad"], ["target", "target"]) == [0.75, None]
    assert judge.usage["failed"] == 1
    assert judge.usage["retried"] == 1
    index, why = judge.failures[0]
    assert (index, reason in why) == (1, True), why
    assert "1 of 2 reports have no score, first report 1: " in caplog.text


def test_log_lines_and_messages_do_not_repeat_a_report(server, caplog):
    report = "The zebraic heart is enlarged."
    answers = [(200, f"I cannot judge: {report}"), (200, json.dumps({"zebraic heart": 1})), (422, f"bad: {report}")]
    for status, content in answers:
        server.answers = lambda request, answer=(status, content): answer
        judge = Judge(server.url, "tiny", attempts=1)
        with pytest.raises(RunError) as error:
            judge([report], [report])
        assert "zebraic" not in f"{error.value} {caplog.text}"
    assert "status 422: 'a message that repeats the request'" in str(error.value)
    server.answers = lambda request: (200, answers[0][1] if "bad" in text_of(request) else json.dumps(VALID))
    judge = Judge(server.url, "tiny", attempts=1)
    assert judge(["good", "bad"], ["x", "x"]) == [0.75, None]
    assert "first report 1: the answer is not JSON." in caplog.text
    assert "zebraic" not in caplog.text
    assert "zebraic" in judge.failures[0][1]  # for whoever asks


def test_a_busy_server_is_asked_again(server):
    seeds = []

    def answers(request):
        seeds.append(request["seed"])
        return (503, "busy") if len(seeds) == 1 else (200, json.dumps(VALID))

    server.answers = answers
    judge = Judge(server.url, "tiny")
    assert judge(["a"], ["b"]) == [0.75]
    assert (seeds, judge.usage["retried"], judge.usage["failed"]) == ([0, 1], 1, 0)
    assert [request["temperature"] for _, request, _ in server.requests] == [0.0, 0.7]


def test_answers_are_cached_on_disk(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    assert Judge(server.url, "tiny", cache=cache)(["a", "c", "a"], ["b", "d", "b"]) == [0.75] * 3
    assert len(server.requests) == 2
    again = Judge(server.url, "tiny", cache=cache)
    assert again(["c", "e"], ["d", "f"]) == [0.75] * 2
    assert (len(server.requests), again.usage["cached"]) == (3, 1)
    assert Judge(server.url, "other", cache=cache)(["a"], ["b"]) == [0.75]
    assert len(server.requests) == 4


def test_a_cache_that_a_crash_has_truncated_is_used_without_its_last_line(server, tmp_path, caplog):
    cache = tmp_path / "judge.jsonl"
    Judge(server.url, "tiny", cache=cache)(["a", "c"], ["b", "d"])
    lines = cache.read_bytes().splitlines(keepends=True)
    cache.write_bytes(lines[0] + b'{"key": "0", "counts": {"matched": 1}}\n' + lines[1][:-9])
    again = Judge(server.url, "tiny", cache=cache)
    assert "judge.jsonl, line 2: expected an answer with matched, significant, insignificant" in caplog.text
    assert again(["a", "c"], ["b", "d"]) == [0.75] * 2
    assert (len(server.requests), again.usage["cached"]) == (3, 1)
    assert len(Judge(server.url, "tiny", cache=cache).known) == 2


def test_the_server_is_checked_before_the_first_report(server):
    Judge(server.url, "tiny").check()  # this one has no list of models: nothing is known
    assert server.requests == []
    with pytest.raises(RunError, match=r"The judge's server http://127.0.0.1:9 does not answer \(ConnectionError\)"):
        Judge("http://127.0.0.1:9", "tiny").check()


def test_no_answer_at_all_is_an_error(server):
    server.answers = lambda request: (404, "no such model")
    with pytest.raises(RunError, match=r"1 of 1 reports have no score.*status 404.*Check that http"):
        Judge(server.url, "tiny")(["a"], ["b"])
    assert len(server.requests) == 1  # the request is wrong: no retry
    with pytest.raises(RunError, match="the server does not answer"):
        Judge("http://127.0.0.1:9", "tiny", attempts=1)(["a"], ["b"])


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="`url` to start with http:// or https://, but got 'localhost'"):
        Judge("localhost", "tiny")
    with pytest.raises(UserError, match=r"`prompt` to contain \{candidate\}"):
        Judge("http://x", "tiny", prompt="{reference}")
    with pytest.raises(UserError, match="`attempts` to be at least 1, but got 0"):
        Judge("http://x", "tiny", attempts=0)


def test_a_server_that_lists_its_models(monkeypatch):
    asked = []

    def get(url, headers, timeout):
        asked.append((url, headers, timeout))
        return answer

    monkeypatch.setattr("requests.get", get)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answer = SimpleNamespace(status_code=200, json=lambda: {"data": [{"id": "tiny"}, {"id": "large"}]})
    Judge("http://x/", "large", timeout=120).check()
    Judge("http://x", "large", timeout=5).check()
    headers = {"Authorization": "Bearer secret"}
    assert asked == [("http://x/v1/models", headers, 10), ("http://x/v1/models", headers, 5)]
    with pytest.raises(RunError, match="Expected http://x to serve 'huge', but it serves tiny, large"):
        Judge("http://x", "huge").check()
    for content in ([], {"data": [{}]}, {"data": 3}, {"data": []}):
        answer = SimpleNamespace(status_code=200, json=lambda content=content: content)
        Judge("http://x", "huge").check()
    answer = SimpleNamespace(status_code=500, json=lambda: {"data": [{"id": "tiny"}]})
    Judge("http://x", "huge").check()


def test_the_request_as_a_whole(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = Judge(server.url, "tiny", counts={"a": "first", "b": "second"}, score=lambda counts: counts["a"])
    server.answers = lambda request: (200, '{"a": 99, "b": 0}')
    assert judge(["x"], ["y"]) == [99]
    _, request, key = server.requests[0]
    assert key is None
    assert request == {
        "model": "tiny",
        "messages": [{"role": "user", "content": (
            "Compare a candidate radiology report with the reference of a radiologist. Judge findings alone, not "
            "style. Count:\n- a: first\n- b: second\nAnswer in JSON.\n\nReference:\ny\n\nCandidate:\nx"
        )}],
        "temperature": 0.0,
        "seed": 0,
        "max_tokens": 200,
        "response_format": {"type": "json_schema", "json_schema": {"name": "counts", "schema": {
            "type": "object",
            "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "ab"},
            "required": ["a", "b"],
            "additionalProperties": False,
        }}},
    }  # fmt: skip
    assert judge.usage == {"cached": 0, "asked": 1, "prompt_tokens": 7, "completion_tokens": 5, "failed": 0}
    server.answers = lambda request: (200, '{"a": 100, "b": 0}')
    with pytest.raises(RunError, match="expected a to be an integer from 0 to 99"):
        judge(["z"], ["y"])
    assert judge.usage["asked"] == 1 + 3
    assert judge.usage["retried"] == 2


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 400])
def test_which_answers_are_asked_for_again(server, monkeypatch, status):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.answers = lambda request: (status, "busy")
    with pytest.raises(RunError, match=f"status {status}"):
        Judge(server.url, "tiny", attempts=8)(["a"], ["b"])
    expected = [] if status == 400 else [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [wait for wait in waits if wait in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0)] == pytest.approx(expected)
    assert len(server.requests) == 1 + len(expected)


def test_reasons_without_what_the_model_wrote():
    for reason, said in (
        ("the server answers with status 500: 'x'.", "the server answers with status 500: 'x'."),
        ("the answer is not JSON: 'Edema'.", "the answer is not JSON."),
        ('the answer is not JSON: "Edema".', "the answer is not JSON."),
        ("expected a to be an integer, but got 'Edema'.", "expected a to be an integer."),
    ):
        assert without_answer(reason) == said
    assert repeats("error in no left effusion here", "report: no left effusion.")
    assert repeats("no left effusion", "no left effusion")
    assert not repeats("no left", "no left effusion")
    assert not repeats("no right effusion", "no left effusion")
