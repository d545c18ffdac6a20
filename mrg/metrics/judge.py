"""A language model as a judge of reports, behind any OpenAI-compatible HTTP server, such as a vLLM server of your own.

The judge counts errors by a JSON schema, which the server enforces and which is checked again here, and a formula turns
the counts into a score: CRIMSON, GREEN and CheXprompt differ in prompt, counts and formula, all of which are arguments.
A report without a valid answer has no score, None, and is counted with the reason: it is never scored as 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from mrg.errors import RunError, UserError
from mrg.files import append_lines, count_lines, cut_lines, parse_json
from mrg.log import log

COUNTS = {
    "matched": "findings of the candidate that are also in the reference, with the same meaning",
    "significant": "clinically significant errors: false, missed, misplaced or misjudged findings of the candidate",
    "insignificant": "errors without clinical significance",
}
"""Count -> description, which the judge reads."""

PROMPT = (
    "Compare a candidate radiology report with the reference of a radiologist. Judge findings alone, not style. "
    "Count:\n{counts}\nAnswer in JSON.\n\nReference:\n{reference}\n\nCandidate:\n{candidate}"
)

AGAIN = (408, 425, 429, 500, 502, 503, 504)


def matched_share(counts: Mapping[str, int]) -> float:
    """Matched findings divided by matched findings and significant errors, after GREEN (Ostmeier et al., 2024).

    Without both, as for two reports that state nothing, 1.
    """
    total = counts["matched"] + counts["significant"]
    return counts["matched"] / total if total else 1.0


class Judge:
    """A scorer that asks a server, see `mrg.metrics.labels.Scorer`.

    Args:
        url: Address of the server, such as `http://127.0.0.1:8000`.
        model: Name of the model that the server serves.
        score: Formula of the score from the counts.
        counts: Count -> description; the answer must have each as an integer of at least 0.
        prompt: Text with the fields `{counts}`, `{reference}` and `{candidate}`.
        cache: File of JSON lines with earlier answers, to which new ones are appended; empty for none.
        attempts: Attempts per report; the first one is greedy, the others are sampled.
        timeout: Time limit of an attempt in seconds.
        concurrency: Number of reports that are judged at a time.
        max_tokens: Largest number of tokens of an answer.
        key_variable: Environment variable with the key of the server, if it needs one.

    Raises:
        UserError: If the address, the prompt or a number is invalid.
    """

    def __init__(
        self,
        url: str,
        model: str,
        score: Callable[[Mapping[str, int]], float] = matched_share,
        counts: Mapping[str, str] = COUNTS,
        prompt: str = PROMPT,
        cache: str | Path = "",
        attempts: int = 3,
        timeout: float = 120.0,
        concurrency: int = 8,
        max_tokens: int = 200,
        key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"Expected argument `url` to start with http:// or https://, but got {url!r}.")
        for field in ("{reference}", "{candidate}"):
            if field not in prompt:
                raise UserError(f"Expected argument `prompt` to contain {field}.")
        for name, value in (("attempts", attempts), ("concurrency", concurrency), ("max_tokens", max_tokens)):
            if value < 1:
                raise UserError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        self.url, self.model, self.score, self.counts = url.rstrip("/"), model, score, dict(counts)
        self.prompt, self.attempts, self.timeout = prompt, attempts, timeout
        self.concurrency, self.max_tokens, self.key_variable = concurrency, max_tokens, key_variable
        self.name = f"judge {model}"
        self.cache = Path(cache) if cache else None
        self.usage: Counter[str] = Counter()
        """Numbers of `asked`, `cached`, `retried` and `failed` reports, `prompt_tokens` and `completion_tokens`."""
        self.failures: list[tuple[int, str]] = []
        """Index and reason of the reports of the last call without a score; a reason may quote the answer."""
        self._lock = threading.Lock()
        self.known = self._read()

    def _read(self) -> dict[str, dict[str, int]]:
        if self.cache is None or not self.cache.is_file():
            return {}
        cut_lines(self.cache, count_lines(self.cache))  # what a crash has left of the last line
        known = {}
        for number, line in enumerate(self.cache.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = parse_json(line)
                known[row["key"]] = {name: int(row["counts"][name]) for name in self.counts}
            except (ValueError, LookupError, TypeError):
                log.warning(f"{self.cache}, line {number}: expected an answer with {', '.join(self.counts)}; ignored.")
        return known

    def __call__(self, preds: Sequence[str], target: Sequence[str]) -> list[float | None]:
        """Score reports; None without a valid answer, see `failures`.

        Raises:
            RunError: If there is no valid answer for any report.
        """
        texts = [self._text(p, t) for p, t in zip(preds, target, strict=True)]
        names = ",".join(self.counts)
        keys = [hashlib.sha256(f"{self.model}\n{names}\n{text}".encode()).hexdigest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}
        self.usage["cached"] += len(keys) - len(new)
        reasons: dict[str, str] = {}
        with ThreadPoolExecutor(self.concurrency) as pool:
            for key, answer in zip(new, pool.map(self._ask, new.values()), strict=True):
                if isinstance(answer, str):
                    reasons[key] = answer
                    continue
                self.known[key] = answer
                if self.cache is not None:
                    append_lines(self.cache, [{"key": key, "model": self.model, "counts": answer}])
        self.failures = [(i, reasons[key]) for i, key in enumerate(keys) if key in reasons]
        self.usage["failed"] += len(self.failures)
        if self.failures:
            index, reason = self.failures[0]
            number = f"{len(self.failures)} of {len(keys)}"
            text = f"{self.name}: {number} reports have no score, first report {index}: {without_answer(reason)}"
            if len(self.failures) == len(keys):
                raise RunError(f"{text} Check that {self.url} serves {self.model} with structured outputs.")
            log.warning(text)
        return [float(self.score(self.known[key])) if key in self.known else None for key in keys]

    def check(self) -> None:
        """Check that the server answers and, if it lists its models, that it serves the one of this judge.

        Raises:
            RunError: If it does not answer, or lists other models.
        """
        try:
            response = requests.get(f"{self.url}/v1/models", headers=self._headers(), timeout=min(self.timeout, 10.0))
            served = [str(row["id"]) for row in response.json()["data"]] if response.status_code == 200 else []
        except requests.ConnectionError as error:
            raise RunError(
                f"The judge's server {self.url} does not answer ({type(error).__name__}): start it."
            ) from None
        except (requests.RequestException, ValueError, LookupError, TypeError):
            return  # some servers have no list; the first report will tell
        if served and self.model not in served:
            raise RunError(f"Expected {self.url} to serve {self.model!r}, but it serves {', '.join(served)}.")

    def _text(self, candidate: str, reference: str) -> str:
        listed = "\n".join(f"- {name}: {text}" for name, text in self.counts.items())
        fields = {"{counts}": listed, "{reference}": reference, "{candidate}": candidate}
        parts = [self.prompt]
        for field, value in fields.items():  # a report may contain braces
            parts = [piece for part in parts for piece in _replaced(part, field, value)]
        return "".join(map(str, parts))

    def _ask(self, text: str) -> dict[str, int] | str:
        """Counts, or the reason why there are none."""
        reason = ""
        for attempt in range(self.attempts):
            if attempt:
                self._count("retried", 1)
                time.sleep(min(0.1 * 2**attempt, 5.0))
            self._count("asked", 1)
            try:
                response = requests.post(
                    f"{self.url}/v1/chat/completions", json=self._request(text, attempt), headers=self._headers(),
                    timeout=self.timeout,
                )  # fmt: skip
            except requests.RequestException as error:
                reason = f"the server does not answer ({type(error).__name__})."
                continue
            if response.status_code != 200:
                said = "a message that repeats the request" if repeats(response.text, text) else response.text[:200]
                reason = f"the server answers with status {response.status_code}: {said!r}."
                if response.status_code in AGAIN:
                    continue
                return reason
            counts = self._counts(response)
            if isinstance(counts, dict):
                return counts
            reason = counts
        return reason

    def _count(self, name: str, number: int) -> None:
        with self._lock:  # reports are judged in threads
            self.usage[name] += number

    def _request(self, text: str, attempt: int) -> dict[str, Any]:
        schema = {
            "type": "object",
            "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in self.counts},
            "required": list(self.counts),
            "additionalProperties": False,
        }
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0.7 if attempt else 0.0,  # the same request would get the same nonsense
            "seed": attempt,
            "max_tokens": self.max_tokens,
            "response_format": {"type": "json_schema", "json_schema": {"name": "counts", "schema": schema}},
        }

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _counts(self, response: requests.Response) -> dict[str, int] | str:
        try:
            body = response.json()
            content = body["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return f"the answer is no chat completion: {response.text[:200]!r}."
        for name in ("prompt_tokens", "completion_tokens"):
            self._count(name, int((body.get("usage") or {}).get(name) or 0))
        try:
            counts = json.loads(content)
        except (ValueError, TypeError):
            return f"the answer is not JSON: {content!r:.200}."
        if not isinstance(counts, dict) or set(counts) != set(self.counts):
            return f"expected the counts {', '.join(self.counts)}, but got {content!r:.200}."
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 99:
                return f"expected {name} to be an integer from 0 to 99, but got {value!r:.50}."
        return counts


def without_answer(reason: str) -> str:
    """A reason without what the model wrote, for log lines and messages: it may repeat a report."""
    if reason.startswith("the server"):
        return reason
    return re.split(r": '|: \"|, but got", reason)[0].rstrip(".") + "."


def repeats(message: str, request: str) -> bool:
    """Whether three words in a row of a message are in a request, as in errors that show the rejected input."""
    words = message.split()
    return any(" ".join(words[i : i + 3]) in request for i in range(len(words) - 2))


def _replaced(part: Any, field: str, value: str) -> list[Any]:
    """Split a part of the template at a field; what has been filled in is left as it is."""
    if isinstance(part, _Filled):
        return [part]
    pieces: list[Any] = []
    for i, piece in enumerate(part.split(field)):
        pieces += [_Filled(value)] * (i > 0) + [piece]
    return pieces


class _Filled(str):
    """A text in place of a field."""

    __slots__ = ()
