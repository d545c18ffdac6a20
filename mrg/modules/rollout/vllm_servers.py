"""vLLM servers as one place that writes: which are up, who is asked, what is tried again.

The public HTTP interface alone is used (OpenAI-compatible server, LoRA adapters at run time: https://docs.vllm.ai).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import requests

from mrg.errors import RunError, UserError
from mrg.modules.rl.loss import Correction, check_correction

START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK "
    "--logprobs-mode processed_logprobs"
)
"""How a server is started."""

BUSY = (408, 429, 502, 503, 504)
AGAIN = (*BUSY, 500)
"""Status codes after which another attempt may help; 500 only where the request itself is known to be sound."""

T = TypeVar("T")


class ServerError(RunError):
    """No server can write what is asked for; the message is one line."""


class AgainError(Exception):
    """This server could not answer now; it, or another one, may."""


@dataclasses.dataclass
class Servers:
    """vLLM servers that write the completions of training.

    Args:
        urls: Addresses, such as `http://127.0.0.1:8000`; each serves the base model of `model.init_args.policy`.
        adapters: Folder in which adapters are written; all servers read it under the same path.
        sync_every: Rounds from one adapter to the next.
        correction: How the gap between policy and sampler is made up for, see `mrg.modules.rl.loss`.
        ratio_limit: Its limit.
        timeout: Seconds in which one study's group must be written.
        attempts: How often each study is tried, on whichever server is up, before the run stops.
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
        check_correction(self.correction, self.ratio_limit)


class ServerPool:
    """Asks servers; one that fails is left aside until it answers again.

    Args:
        servers: Which, and how often.
    """

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.urls = [url.rstrip("/") for url in servers.urls]
        self.base_names: dict[str, str] = {}
        self.loaded: dict[str, str] = {}
        self.down: set[str] = set()
        self._next = 0
        self._lock = threading.Lock()

    def check(self) -> None:
        """Ask every server whether it is there and may load adapters.

        Raises:
            ValueError: If one is not, serves something else than one base model, or loads no adapters.
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
        """Look again for servers that failed: they may have been started anew."""
        self.down = {url for url in self.down if not _is_up(url)}

    def ask(self, question: Callable[[str], T], what: str) -> T:
        """Put a question to one server after another, `attempts` times at most, waiting longer each time.

        Args:
            question: Takes an address; raises `AgainError` where another attempt may help.
            what: What is asked for, in words.

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
        """The servers that are up, in turn; None where all are down."""
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
        """Have a server load an adapter and forget the one before, unless it has it already.

        Raises:
            AgainError: If the server does not answer.
            ValueError: If it cannot load it.
        """
        with self._lock:
            if self.loaded.get(url) == name:
                return
            old = self.loaded.pop(url, None)
            answer = self.post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, BUSY)
            if answer.status_code != 200 and "already" not in answer.text:
                raise UserError(
                    f"The rollout server {url} cannot load the adapter {folder}: {message_of(answer)} Its rank must "
                    "be at most the server's --max-lora-rank, and the folder must be readable there."
                )
            self.loaded[url] = name
            if old is not None:
                self.post(url, "/v1/unload_lora_adapter", {"lora_name": old})


def _is_up(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/health", timeout=10).status_code == 200)
    except requests.RequestException:
        return False


def message_of(answer: requests.Response) -> str:
    """What a server says went wrong, in one line."""
    try:
        content = answer.json()
        text = str(content.get("error", content).get("message", answer.text))
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(text.split())[:300]
