"""Rollouts written by vLLM servers.

Each study is one chat request for its whole group. Images travel as PNG in the size in which the policy reads them, so
that a server does not resize them in its own way; the tokens of the prompt come back and must be the policy's own. The
base weights never move: the adapter is written to a folder that the servers can read, under a new name each time, and
loaded there.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.files import make_folder
from mrg.modules.policy.policy import Policy
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.rollout.vllm_servers import AgainError, ServerPool, Servers, message_of

NO_ADAPTER = (
    "Rollout servers receive an adapter and never whole weights: set model.init_args.lora, or rollout.servers to null."
)


def connect(servers: Servers, policy: Policy, trainer: L.Trainer) -> VLLMClient:
    """Check the servers before anything is computed.

    Raises:
        ValueError: If the policy has no adapter to send, or a server is not what is needed.
    """
    if not policy.has_adapter:
        raise UserError(NO_ADAPTER)
    make_folder(Path(servers.adapters), "model.init_args.rollout.servers.adapters")
    writers = VLLMClient(servers, policy, f"{Path(trainer.default_root_dir).name}-{os.getpid()}")
    writers.pool.check()
    return writers


class VLLMClient:
    """Writes rollouts through servers.

    Args:
        servers: Which, and how.
        policy: Whose adapter they use; its base model must be the served one.
        name: Of the run, part of the adapters' names.
    """

    def __init__(self, servers: Servers, policy: Policy, name: str = "mrg") -> None:
        self.servers, self.policy, self.name = servers, policy, name
        self.pool = ServerPool(servers)
        self.adapter: tuple[str, Path] | None = None
        self.synchronised = 0

    def synchronize(self, number: int, trainer: L.Trainer) -> None:
        """Give the servers the policy's adapter where the last one is `sync_every` rounds old.

        Args:
            number: Of the round.
            trainer: The first rank writes for all.
        """
        if self.adapter is not None and number < self.synchronised + self.servers.sync_every:
            return
        written = self.publish(Path(self.servers.adapters), number) if trainer.is_global_zero else None
        self.adapter = trainer.strategy.broadcast(written)
        self.synchronised = number

    def publish(self, folder: Path, number: int) -> tuple[str, Path]:
        """Write the adapter as it is now; a folder is there either completely or not at all.

        Args:
            folder: Parent of the adapters; all but the last two of this run are removed.
            number: Of the round, part of the adapter's name.

        Returns:
            The adapter's name and its folder.
        """
        name = f"{self.name}-{number}"
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
        """`group_size` completions for each study; a server that fails leaves its studies to the others.

        Args:
            batch: B studies.
            seeds: The studies' places in the batch, in the order wanted, and a seed for each.
            group_size: Completions per study.
            max_new_tokens: Length limit.
            temperature: Of sampling; 0 takes the likeliest token, one completion per study.

        Raises:
            ServerError: If a study could not be written in `attempts` attempts.
            ValueError: If a server refuses a request, or reads another prompt than the policy.
        """
        self.pool.revive()
        contents = list(self._contents(batch))
        jobs = []
        for row, seed in seeds.items():
            prompt = batch.prompt_ids[row][batch.prompt_mask[row]].tolist()
            request = self._request(contents[row], group_size, max_new_tokens, temperature, seed)
            jobs.append((request, prompt, batch.study_id[row]))
        with ThreadPoolExecutor(min(len(jobs), 32 * len(self.pool.urls))) as threads:
            written = list(threads.map(lambda job: self._study(*job), jobs))
        choices = [choice for group in written for choice in group]
        return self._rollout(choices, batch.prompt_ids.device)

    def _contents(self, batch: Batch) -> Iterator[list[dict[str, Any]]]:
        """The chat contents of the studies with the images in place, in the size in which the policy reads them."""
        processor = self.policy.processor.image_processor
        grids = iter(() if batch.image_grid_thw is None else batch.image_grid_thw.tolist())
        for content, views in zip(batch.contents, batch.views, strict=True):
            images = []
            for view in views:
                image = view.load()
                if batch.image_grid_thw is not None:
                    _, rows, columns = next(grids)
                    size = (columns * processor.patch_size, rows * processor.patch_size)
                    image = image.resize(size, processor.resample)
                images.append(image_part(image))
            given = iter(images)
            yield [next(given) if part["type"] == "image" else part for part in content]

    def _request(
        self, content: list[dict[str, Any]], group_size: int, max_new_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        # What a checkpoint's generation_config.json says of sampling must not count: every setting is named.
        return {
            "messages": [{"role": "user", "content": content}],
            "n": group_size,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed % 2**31,
            "max_completion_tokens": max_new_tokens,
            "logit_bias": {str(token): -100 for token in self.policy.banned_ids},
            "stop_token_ids": [self.policy.eos_id],
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }

    def _study(self, request: dict[str, Any], prompt: list[int], study: str) -> list[dict[str, Any]]:
        """The choices of one study, from whichever server answers."""
        return self.pool.ask(lambda url: self._choices(url, request, prompt, study), f"study {study}")

    def _choices(self, url: str, request: dict[str, Any], prompt: list[int], study: str) -> list[dict[str, Any]]:
        answer = self.pool.post(url, "/v1/chat/completions", {**request, "model": self._model(url)})
        if answer.status_code == 404 and self.adapter is not None:
            self.pool.loaded.pop(url, None)  # started anew since
            raise AgainError(f"{url} lost its adapter")
        if answer.status_code != 200:
            raise UserError(f"Study {study}: the rollout server {url} refused the request: {message_of(answer)}")
        content = answer.json()
        choices: list[dict[str, Any]] = content["choices"]
        read = content.get("prompt_token_ids")
        if read is None or any(choice.get("token_ids") is None for choice in choices):
            raise UserError(f"The rollout server {url} returns no token ids: it is too old, update vLLM.")
        if read != prompt:
            raise UserError(
                f"Study {study}: the rollout server {url} reads another prompt than the policy ({len(read)} tokens, "
                f"not {len(prompt)}): serve the checkpoint of model.init_args.policy with its own chat template and "
                "image settings."
            )
        if len(choices) != request["n"]:
            raise AgainError(f"{url} wrote {len(choices)} of {request['n']} completions")
        return choices

    def _model(self, url: str) -> str:
        """What a server calls the policy; its adapter is loaded there if it is not yet."""
        if self.adapter is None:
            return self.pool.base_names[url]
        name, folder = self.adapter
        self.pool.load(url, name, folder)
        return name

    def _rollout(self, choices: list[dict[str, Any]], device: torch.device) -> Rollout:
        lengths = [len(choice["token_ids"]) for choice in choices]
        shape = (len(choices), max(lengths))
        ids = torch.full(shape, self.policy.pad_id)
        logps = torch.zeros(shape)
        for row, (choice, length) in enumerate(zip(choices, lengths, strict=True)):
            ids[row, :length] = torch.tensor(choice["token_ids"])
            logps[row, :length] = torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]])
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        ended: Tensor = ((ids == self.policy.eos_id) & mask).any(1)
        tokenizer = self.policy.processor.tokenizer
        texts = [
            tokenizer.decode(row[:length], skip_special_tokens=True).strip()
            for row, length in zip(ids, lengths, strict=True)
        ]
        return Rollout(ids.to(device), mask.to(device), logps.to(device), texts, ~ended.to(device))


def image_part(image: Any) -> dict[str, Any]:
    """A Pillow image as a part of a chat message."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
