"""A pool of vLLM servers: which are up, which is asked next, and what is retried.

Only the public HTTP interface is used (OpenAI-compatible server, LoRA adapters at run time: https://docs.vllm.ai).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import requests

from mrg.errors import RunError, UserError
from mrg.modules.rl.correction import Correction, check_correction

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK "
    "--logprobs-mode processed_logprobs"
)
"""Command that starts a server."""

BUSY = (408, 429, 502, 503, 504)
AGAIN = (*BUSY, 500)
"""Status codes after which a retry may help; 500 only if the request itself is known to be valid."""

T = TypeVar("T")


class ServerError(RunError):
    """No server could answer a request."""


class AgainError(Exception):
    """A server could not answer; a retry, there or elsewhere, may succeed."""


@dataclasses.dataclass
class Servers:
    """vLLM servers that sample the completions in training.

    Args:
        urls: Addresses, such as `http://127.0.0.1:8000`; each serves the base model of `model.init_args.policy`.
        adapters: Folder for adapters, which all servers must see under the same path.
        sync_every: Rounds between two adapters.
        correction: Correction for the gap between policy and sampler: `"truncate"` weights a token by the ratio of
            policy to server probability, at most `ratio_limit`; `"mask"` leaves out tokens whose ratio is above it or
            below its inverse, `"sequence_mask"` completions whose product of ratios is; `"none"` does nothing.
        ratio_limit: Limit of the ratio in the correction.
        timeout: Time limit for the group of a study, in seconds.
        attempts: Attempts per study, on any server that is up, before the run stops.
    """

    urls: list[str]
    adapters: str = "adapters"
    sync_every: int = 1
    correction: Correction = "truncate"
    ratio_limit: float = 2.0
    timeout: float = 600.0
    attempts: int = 5

    def __post_init__(self) -> None:
        if not self.urls:
            raise UserError("Expected model.init_args.rollout.servers.urls to hold an address, but it is empty.")
        wrong = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        if wrong:
            raise UserError(
                "Expected model.init_args.rollout.servers.urls to start with http:// or https://, but got "
                f"{wrong[0]!r}."
            )
        for name, value in (("sync_every", self.sync_every), ("attempts", self.attempts)):
            if value < 1:
                raise UserError(f"Expected model.init_args.rollout.servers.{name} to be at least 1, but got {value}.")
        check_correction(self.correction, self.ratio_limit, "model.init_args.rollout.servers.")


class ServerPool:
    """Servers that are asked in turn; one that fails is skipped until it answers again.

    Threads share it. Its lock is held for bookkeeping alone, never during a request, so that a server that is slow or
    dead delays only the studies that were sent to it.

    Args:
        servers: Servers and settings.
    """

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.urls = [url.rstrip("/") for url in servers.urls]
        self.base_names: dict[str, str] = {}
        self.loaded: dict[str, str] = {}
        self._loading: dict[tuple[str, str], Future[None]] = {}
        self.down: set[str] = set()
        self._next = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Check that every server answers, serves one base model, and can load adapters at run time.

        Raises:
            UserError: If one does not.
        """
        for url in self.urls:
            try:
                models = requests.get(f"{url}/v1/models", timeout=20).json()["data"]
                routes = requests.get(f"{url}/openapi.json", timeout=20).json()["paths"]
                names = [model["id"] for model in models if model.get("parent") is None]
            except (requests.RequestException, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"No rollout server answers at {url} ({type(error).__name__}): start it ({START}), or correct "
                    "model.init_args.rollout.servers.urls."
                ) from None
            if "/v1/load_lora_adapter" not in routes:
                raise UserError(f"The rollout server {url} loads no adapters at run time: start it with {START}.")
            if len(names) != 1:
                raise UserError(f"Expected the rollout server {url} to serve one base model, but it serves {names}.")
            self.base_names[url] = names[0]

    def revive(self) -> None:
        """Check servers that failed again: they may have been restarted."""
        self.down = {url for url in self.down if not _is_up(url)}

    def ask(self, question: Callable[[str], T], what: str) -> T:
        """Ask one server after another, at most `attempts` times, with increasing pauses.

        Args:
            question: Function of an address; raises `AgainError` if a retry may help.
            what: Description of the request, for messages.

        Raises:
            ServerError: If no attempt succeeded.
        """
        reason = "none was up"
        for attempt in range(self.servers.attempts):
            url = self._pick()
            if url is None:
                time.sleep(min(0.5 * 2**attempt, 10))
                self.revive()
                continue
            try:
                return question(url)
            except AgainError as error:
                reason = str(error)
                if not _is_up(url):
                    self.down.add(url)
                else:
                    time.sleep(min(0.1 * 2**attempt, 10))
        raise ServerError(
            f"No rollout server could write {what} in {self.servers.attempts} attempts (last: {reason}): start "
            f"{', '.join(self.urls)} again and resume."
        )

    def _pick(self) -> str | None:
        """Next server that is up, in turn; None if all are down."""
        with self._lock:
            up = [url for url in self.urls if url not in self.down]
            self._next += 1
            return up[self._next % len(up)] if up else None

    def post(self, url: str, path: str, content: Mapping[str, Any], again: Sequence[int] = AGAIN) -> requests.Response:
        """Send JSON.

        Raises:
            AgainError: If the server does not answer, or answers with one of the status codes in `again`.
        """
        try:
            answer = requests.post(f"{url}{path}", json=content, timeout=(10, self.servers.timeout))
        except requests.RequestException as error:
            raise AgainError(f"{url}: {type(error).__name__}") from None
        if answer.status_code in again:
            raise AgainError(f"{url}: {message_of(answer)}")
        return answer

    def load(self, url: str, name: str, folder: Path) -> None:
        """Make a server load an adapter in place of the one before, unless it has done so already.

        If another thread is loading it there, wait for that thread; threads that ask other servers do not wait.

        Raises:
            AgainError: If the server does not answer.
            UserError: If it cannot load the adapter.
        """
        with self._lock:
            if self.loaded.get(url) == name:
                return
            loading = self._loading.get((url, name))
            mine = loading is None
            if loading is None:
                loading = self._loading[url, name] = Future()
        if not mine:
            return loading.result()
        try:
            self._load(url, name, folder)
        except BaseException as error:
            loading.set_exception(error)
            raise
        else:
            loading.set_result(None)
        finally:
            with self._lock:
                del self._loading[url, name]

    def _load(self, url: str, name: str, folder: Path) -> None:
        adapter = {"lora_name": name, "lora_path": str(folder)}
        answer = self.post(url, "/v1/load_lora_adapter", adapter, BUSY)
        # It refuses a name that it serves already, which another rank, or a request that timed out, has loaded.
        served = self._folder_of(url, name) if answer.status_code == 400 else None
        if served is not None and served != str(folder):  # of another run
            self.post(url, "/v1/unload_lora_adapter", {"lora_name": name})
            answer, served = self.post(url, "/v1/load_lora_adapter", adapter, BUSY), None
        if answer.status_code != 200 and served is None:
            raise UserError(
                f"The rollout server {url} cannot load the adapter {folder}: {message_of(answer)} Its rank must "
                "be at most the server's --max-lora-rank, and the folder must be readable there."
            )
        with self._lock:
            old, self.loaded[url] = self.loaded.get(url), name
        if old is not None:
            self.post(url, "/v1/unload_lora_adapter", {"lora_name": old})

    def forget(self, url: str, name: str) -> None:
        """Note that a server has lost an adapter."""
        with self._lock:
            if self.loaded.get(url) == name:
                del self.loaded[url]

    def _folder_of(self, url: str, name: str) -> str | None:
        """Folder from which a server has loaded the adapter of this name; None if it lists none."""
        try:
            models = requests.get(f"{url}/v1/models", timeout=20).json()["data"]
            return next((str(model["root"]) for model in models if model["id"] == name), None)
        except requests.RequestException as error:
            raise AgainError(f"{url}: {type(error).__name__}") from None
        except (KeyError, TypeError, ValueError):
            return None


def _is_up(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/health", timeout=10).status_code == 200)
    except requests.RequestException:
        return False


def message_of(answer: requests.Response) -> str:
    """Error message of a server, in one line."""
    try:
        content = answer.json()
        text = str(content.get("error", content).get("message", answer.text))
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:300]
