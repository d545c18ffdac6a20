"""How a pool of servers fails and recovers, with small servers that fail on purpose; real ones are in tests/servers."""

import threading
from pathlib import Path

import pytest

from mrg.modules.rollout.vllm_servers import AgainError, ServerError, ServerPool, Servers
from tests.servers.json_server import JSONServer


class Failing(JSONServer):
    """An HTTP server that answers as it is told: a list of (status, content) for each path, the last one repeated.

    An answer may be a function that returns one. `hang_up` closes the connection after a POST without an answer.
    """

    hang_up = False

    def __init__(self, answers):
        self.answers, self.seen = answers, []
        super().__init__()

    def reply(self, command, path, request):
        self.seen.append((path, request))
        given = self.answers[path]
        if self.hang_up and command == "POST":
            return None
        found = given.pop(0) if len(given) > 1 else given[0]
        return found() if callable(found) else found


@pytest.fixture
def start():
    started = []

    def one(**answers):
        started.append(Failing({f"/{path}": given for path, given in answers.items()}))
        return started[-1]

    yield one
    for server in started:
        server.close()


def question(pool):
    return lambda url: pool.post(url, "/ask", {"x": 1}).json()


UP = [(200, {})]


def test_what_failed_is_asked_again(start):
    server = start(ask=[(500, {"error": {"message": "cache\ndrift"}}), (503, {}), (200, {"said": 3})], health=UP)
    pool = ServerPool(Servers([server.url + "/"]))
    assert pool.ask(question(pool), "study 1") == {"said": 3}
    assert not pool.down
    assert [path for path, _ in server.seen].count("/ask") == 3


def test_a_server_that_is_down_leaves_its_work_to_the_others_until_it_is_back(start):
    bad = start(ask=[(500, {})], health=[(503, {}), (503, {}), (200, {})])
    good = start(ask=[(200, {"said": "good"})], health=UP)
    pool = ServerPool(Servers([bad.url, good.url]))
    assert [pool.ask(question(pool), "study") for _ in range(6)] == [{"said": "good"}] * 6
    assert pool.down == {bad.url}
    assert len([path for path, _ in bad.seen if path == "/ask"]) == 1
    pool.revive()
    assert pool.down == {bad.url}
    pool.revive()
    assert not pool.down


def test_all_down_is_one_line_that_says_what_was_asked_for(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pool = ServerPool(Servers(["http://127.0.0.1:9"], attempts=3))
    with pytest.raises(ServerError, match=r"study s7 in 3 attempts \(last: http://127.0.0.1:9: ConnectionError\)"):
        pool.ask(question(pool), "study s7")


def test_a_server_that_hangs_is_given_up_after_the_time_allowed():
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        pool = ServerPool(Servers([url], timeout=0.2))
        with pytest.raises(AgainError, match="ReadTimeout"):
            pool.post(url, "/ask", {})


def test_an_adapter_is_loaded_once_and_the_one_before_forgotten(start):
    server = start(**{"v1/load_lora_adapter": [(200, {})], "v1/unload_lora_adapter": [(200, {})]})
    pool = ServerPool(Servers([server.url]))
    for name in ("a-1", "a-1", "a-2", "a-2"):
        pool.load(server.url, name, Path("/adapters") / name)
    assert server.seen == [
        ("/v1/load_lora_adapter", {"lora_name": "a-1", "lora_path": "/adapters/a-1"}),
        ("/v1/load_lora_adapter", {"lora_name": "a-2", "lora_path": "/adapters/a-2"}),
        ("/v1/unload_lora_adapter", {"lora_name": "a-1"}),
    ]


def test_an_adapter_that_another_rank_loaded_is_no_mistake(start):
    models = {"data": [{"id": "tiny", "root": "/m"}, {"id": "a-1", "root": "/adapters/a-1", "parent": "tiny"}]}
    refused = (400, {"error": {"message": "a-1 has already been loaded"}})
    server = start(**{"v1/load_lora_adapter": [refused], "v1/models": [(200, models)]})
    pool = ServerPool(Servers([server.url]))
    pool.load(server.url, "a-1", Path("/adapters/a-1"))
    assert pool.loaded == {server.url: "a-1"}


@pytest.mark.parametrize(
    "models",
    [
        {"data": [{"id": "tiny", "root": "/m", "parent": None}]},
        {"detail": "?"},
    ],
)
def test_a_refusal_is_judged_by_what_the_server_serves_and_not_by_its_words(start, models):
    refused = (400, {"error": {"message": "the rank is too high, and it has been so already"}})
    server = start(**{"v1/load_lora_adapter": [refused], "v1/models": [(200, models)]})
    pool = ServerPool(Servers([server.url]))
    with pytest.raises(ValueError, match=r"cannot load the adapter .*a-1: the rank is too high"):
        pool.load(server.url, "a-1", Path("/adapters/a-1"))
    assert pool.loaded == {}


@pytest.mark.parametrize("second", [(200, {}), (400, {"error": {"message": "the rank is too high"}})])
def test_an_adapter_of_this_name_from_another_folder_is_replaced(start, second):
    models = {"data": [{"id": "a-1", "root": "/elsewhere/a-1", "parent": "tiny"}]}
    refused = (400, {"error": {"message": "a-1 has already been loaded"}})
    server = start(
        **{
            "v1/load_lora_adapter": [refused, second],
            "v1/unload_lora_adapter": [(200, {})],
            "v1/models": [(200, models)],
        }
    )
    pool = ServerPool(Servers([server.url]))
    if second[0] == 200:
        pool.load(server.url, "a-1", Path("/adapters/a-1"))
        assert pool.loaded == {server.url: "a-1"}
    else:
        with pytest.raises(ValueError, match=r"cannot load the adapter .*a-1: the rank is too high"):
            pool.load(server.url, "a-1", Path("/adapters/a-1"))
        assert pool.loaded == {}
    adapter = {"lora_name": "a-1", "lora_path": "/adapters/a-1"}
    posted = [request for request in server.seen if request[0] != "/v1/models"]
    assert posted == [
        ("/v1/load_lora_adapter", adapter),
        ("/v1/unload_lora_adapter", {"lora_name": "a-1"}),
        ("/v1/load_lora_adapter", adapter),
    ]


def test_a_slow_load_on_one_server_does_not_delay_another(start):
    loading, go_on = threading.Event(), threading.Event()

    def slow():
        loading.set()
        assert go_on.wait(30)
        return 200, {}

    a = start(**{"v1/load_lora_adapter": [slow]})
    b = start(**{"v1/load_lora_adapter": [(200, {})]}, ask=[(200, {"said": "b"})], health=UP)
    pool = ServerPool(Servers([a.url, b.url]))
    threads = [threading.Thread(target=pool.load, args=(a.url, "a-1", Path("/adapters/a-1"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert loading.wait(30)
    # All of this while A loads: with a lock around the request it would wait for `go_on`, which is not yet set.
    pool.load(b.url, "a-1", Path("/adapters/a-1"))
    pool.down = {a.url}
    assert pool.ask(question(pool), "study") == {"said": "b"}
    assert pool.loaded == {b.url: "a-1"}
    assert all(thread.is_alive() for thread in threads)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert pool.loaded == {a.url: "a-1", b.url: "a-1"}
    assert len(a.seen) == 1  # the other two waited for the first


def test_a_server_that_dies_in_a_load_leaves_its_studies_to_the_others(start):
    a = start(**{"v1/load_lora_adapter": [(200, {})]}, health=[(503, {})])
    b = start(**{"v1/load_lora_adapter": [(200, {})]}, ask=[(200, {"said": "b"})], health=UP)
    pool = ServerPool(Servers([a.url, b.url], attempts=3))

    def load_and_ask(url):
        pool.load(url, "a-1", Path("/adapters/a-1"))
        return question(pool)(url)

    a.hang_up = True
    assert [pool.ask(load_and_ask, "study") for _ in range(3)] == [{"said": "b"}] * 3
    assert pool.down == {a.url}
    assert pool.loaded == {b.url: "a-1"}
    # It is asked again when it is back: the failed load is not remembered.
    a.hang_up = False
    pool.load(a.url, "a-1", Path("/adapters/a-1"))
    assert pool.loaded == {a.url: "a-1", b.url: "a-1"}


def test_the_only_server_that_dies_in_a_load_is_one_line_that_says_how_to_continue(start, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server = start(**{"v1/load_lora_adapter": [(200, {})]}, health=[(503, {})])
    server.hang_up = True
    pool = ServerPool(Servers([server.url], attempts=3))
    with pytest.raises(
        ServerError, match=r"study s7 in 3 attempts \(last: .*ConnectionError\): start http.* again"
    ) as caught:
        pool.ask(lambda url: pool.load(url, "a-1", Path("/adapters/a-1")), "study s7")
    assert "\n" not in str(caught.value)
    assert pool.loaded == {}
    assert [path for path, _ in server.seen].count("/v1/load_lora_adapter") == 1  # what is down is asked for its health


def test_a_lost_adapter_is_forgotten_unless_it_was_loaded_again(start):
    pool = ServerPool(Servers(["http://a"]))
    pool.loaded = {"http://a": "a-2"}
    pool.forget("http://a", "a-1")
    assert pool.loaded == {"http://a": "a-2"}
    pool.forget("http://a", "a-2")
    assert pool.loaded == {}


def test_an_adapter_that_cannot_be_loaded_stops_at_once(start):
    server = start(**{"v1/load_lora_adapter": [(500, {"error": {"message": "LoRA rank 32\nis too high"}})]})
    pool = ServerPool(Servers([server.url]))
    with pytest.raises(ValueError, match=r"cannot load the adapter .*a-1: LoRA rank 32 is too high"):
        pool.load(server.url, "a-1", Path("a-1"))


MODELS = {"data": [{"id": "tiny", "parent": None}, {"id": "old", "parent": "tiny"}]}
ROUTES = {"paths": {"/v1/load_lora_adapter": {}}}


def test_check_takes_the_name_of_the_base_model(start):
    server = start(**{"v1/models": [(200, MODELS)], "openapi.json": [(200, ROUTES)]})
    pool = ServerPool(Servers([server.url]))
    pool.check()
    assert pool.base_names == {server.url: "tiny"}


@pytest.mark.parametrize(
    ("models", "routes", "message"),
    [
        (MODELS, {"paths": {}}, "loads no adapters at run time: start it with VLLM_ALLOW"),
        ({"data": []}, ROUTES, "to serve one base model, but it serves"),
        ({"error": "?"}, ROUTES, "No rollout server answers"),
        (["?"], ROUTES, "No rollout server answers"),
    ],
)
def test_check_says_what_is_wrong(start, models, routes, message):
    server = start(**{"v1/models": [(200, models)], "openapi.json": [(200, routes)]})
    with pytest.raises(ValueError, match=message):
        ServerPool(Servers([server.url])).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"urls": []}, "to hold an address"),
        ({"urls": ["localhost:8000"]}, "to start with http:// or https://, but got 'localhost:8000'"),
        ({"sync_every": 0}, "sync_every to be at least 1, but got 0"),
        ({"attempts": 0}, "attempts to be at least 1, but got 0"),
        ({"correction": "clip"}, "one of truncate, mask, none, sequence_mask, but got 'clip'"),
        ({"ratio_limit": 1.0}, "above 1, but got 1.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Servers(**{"urls": ["http://a"], **settings})
