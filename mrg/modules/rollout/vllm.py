"""Rollouts sampled by vLLM servers.

Each study is one chat request for its whole group, with its images as PNG. The base weights are never sent: the adapter
is written to a folder that the servers can read, under a new name each time, and loaded from there.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.files import make_folder
from mrg.modules.policy.policy import Policy
from mrg.modules.rollout.exchange import Contents, Written, check_prompt, prompt_tokens, sampling_options, to_rollout
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.rollout.vllm_servers import AgainError, ServerPool, Servers, message_of

NO_ADAPTER = (
    "Rollout servers receive an adapter and never whole weights: set model.init_args.lora, or rollout.servers to null."
)


def connect(servers: Servers, policy: Policy, trainer: L.Trainer) -> VLLMClient:
    """Connect to the servers, and check them before anything is computed.

    Raises:
        UserError: If the policy has no adapter, or a server does not meet the requirements.
    """
    if not policy.has_adapter:
        raise UserError(NO_ADAPTER)
    make_folder(Path(servers.adapters), "model.init_args.rollout.servers.adapters")
    client = VLLMClient(servers, policy, f"{Path(trainer.default_root_dir).name}-{os.getpid()}")
    client.pool.check()
    return client


class VLLMClient:
    """Client that samples rollouts on vLLM servers.

    Args:
        servers: Servers and settings.
        policy: Policy whose adapter the servers load; they must serve its base model.
        name: Name of the run, part of the adapters' names.
    """

    version = "vLLM servers"

    def __init__(self, servers: Servers, policy: Policy, name: str = "mrg") -> None:
        self.servers, self.policy, self.name = servers, policy, name
        self.pool, self.contents = ServerPool(servers), Contents(policy, image_part)
        self.adapter: tuple[str, Path] | None = None
        self.last_sync = 0

    def synchronize(self, round_index: int, trainer: L.Trainer) -> None:
        """Publish the policy's adapter if the last one is `sync_every` rounds old.

        Args:
            round_index: Index of the round.
            trainer: Trainer, whose first rank writes for all ranks.
        """
        if self.adapter is not None and round_index < self.last_sync + self.servers.sync_every:
            return
        written = self.publish(Path(self.servers.adapters), round_index) if trainer.is_global_zero else None
        self.adapter = trainer.strategy.broadcast(written)
        self.last_sync = round_index

    def publish(self, folder: Path, round_index: int) -> tuple[str, Path]:
        """Write the current adapter to a folder, atomically.

        Args:
            folder: Parent folder of the adapters; all but the last two of this run are removed.
            round_index: Index of the round, part of the adapter's name.

        Returns:
            Name and folder of the adapter.
        """
        name = f"{self.name}-{round_index}"
        final = (folder / name).absolute()
        temporary = final.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.policy.save_adapter(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        earlier = sorted(
            (path for path in folder.glob(f"{self.name}-*") if path.name[len(self.name) + 1 :].isdecimal()),
            key=lambda path: path.stat().st_mtime,
        )
        for path in earlier[:-2]:
            shutil.rmtree(path, ignore_errors=True)
        return name, final

    def sample(
        self, batch: Batch, seeds: Mapping[int, int], group_size: int, max_new_tokens: int, temperature: float
    ) -> Rollout:
        """Sample `group_size` completions per study, see `ask`."""
        written = self.ask(batch, seeds, group_size, max_new_tokens, temperature)
        return to_rollout(self.policy, *written, batch.prompt_ids.device)

    def ask(
        self,
        batch: Batch,
        seeds: Mapping[int, int],
        group_size: int,
        max_new_tokens: int,
        temperature: float,
        own_contents: bool = False,
    ) -> Written:
        """Ask for `group_size` completions per study; if a server fails, the others take over its studies.

        Args:
            batch: B studies.
            seeds: Index of a study in the batch -> its seed, in the order of the result.
            group_size: Completions per study.
            max_new_tokens: Largest number of tokens of a completion.
            temperature: Sampling temperature; 0 takes the most likely token, for one completion per study.
            own_contents: Encode the images for this call alone, as other threads may ask for other studies.

        Raises:
            ServerError: If all `attempts` for a study failed.
            UserError: If a server refuses a request, or reads another prompt than the policy.
        """
        self.pool.revive()
        contents = Contents(self.policy, image_part) if own_contents else self.contents
        jobs = []
        for row, seed in seeds.items():
            content = contents.of(batch, row)
            request = self._request(content, group_size, max_new_tokens, temperature, seed)
            jobs.append((request, prompt_tokens(batch, row), batch.study_id[row]))
        with ThreadPoolExecutor(min(len(jobs), 32 * len(self.pool.urls))) as threads:
            written = list(threads.map(lambda job: self._study(*job), jobs))
        choices = [choice for group in written for choice in group]
        tokens = [choice["token_ids"] for choice in choices]
        logps = [[token["logprob"] for token in choice["logprobs"]["content"]] for choice in choices]
        return tokens, logps

    def _request(
        self, content: list[dict[str, Any]], group_size: int, max_new_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        return {
            **sampling_options(self.policy, group_size, temperature, seed),
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens": max_new_tokens,
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }

    def _study(self, request: dict[str, Any], prompt: list[int], study: str) -> list[dict[str, Any]]:
        """Choices of one study, from any server that answers."""
        return self.pool.ask(lambda url: self._choices(url, request, prompt, study), f"study {study}")

    def _choices(self, url: str, request: dict[str, Any], prompt: list[int], study: str) -> list[dict[str, Any]]:
        answer = self.pool.post(url, "/v1/chat/completions", {**request, "model": self._model(url)})
        if answer.status_code == 404 and self.adapter is not None:
            self.pool.forget(url, self.adapter[0])  # it has been restarted since
            raise AgainError(f"{url} lost its adapter")
        if answer.status_code != 200:
            raise UserError(f"Study {study}: the rollout server {url} refused the request: {message_of(answer)}")
        content = answer.json()
        choices: list[dict[str, Any]] = content["choices"]
        read = content.get("prompt_token_ids")
        if read is None or any(choice.get("token_ids") is None for choice in choices):
            raise UserError(f"The rollout server {url} returns no token ids: it is too old, update vLLM.")
        check_prompt(read, prompt, study, f"server {url}")
        if len(choices) != request["n"]:
            raise AgainError(f"{url} wrote {len(choices)} of {request['n']} completions")
        return choices

    def _model(self, url: str) -> str:
        """Name of the policy on a server; loads the adapter there if necessary."""
        if self.adapter is None:
            return self.pool.base_names[url]
        name, folder = self.adapter
        self.pool.load(url, name, folder)
        return name


def image_part(image: Any) -> dict[str, Any]:
    """Part of a chat message with a Pillow image."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
