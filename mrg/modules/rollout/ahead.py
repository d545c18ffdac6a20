"""Rollouts of the next round, which servers sample while the policy trains on those of this round.

A thread asks the servers, and only that: their answers are decoded where they are taken, because a tokenizer must not
be used by two threads at once. The policy that sampled a round is then one step older than the one that is trained on
it, which the sampler correction weighs (`mrg.modules.rl.correction`). Answers that have not been used yet are part of
checkpoints, so that a resumed run learns from the same completions.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from mrg.datamodules.collate import Batch
from mrg.errors import UserError
from mrg.modules.rollout.exchange import Written, to_rollout
from mrg.modules.rollout.sampling import Rollout
from mrg.modules.rollout.vllm import VLLMClient


@dataclasses.dataclass
class Waiting:
    """A rollout that the servers have been asked for.

    Args:
        sampled_in: Round before whose steps the policy sampled.
        study_id: Studies of the rollout.
        answer: What the servers write.
    """

    sampled_in: int
    study_id: list[str]
    answer: Future[Written]


class Ahead:
    """Rollouts that are sampled ahead, by round; `age` is the number of rounds that the one taken last is old.

    Args:
        client: Client of the servers.
    """

    def __init__(self, client: VLLMClient) -> None:
        self.client = client
        self.waiting: dict[int, Waiting] = {}
        self.age = 0

    def start(self, round_index: int, batch: Batch, seeds: Mapping[int, int], sampling: tuple[int, int, float]) -> None:
        """Ask the servers for the rollout of a round in a thread, unless they have been asked already.

        Args:
            round_index: Index of the round.
            batch: Its studies, on the CPU.
            seeds: Index of a study in the batch -> its seed.
            sampling: Group size, largest number of tokens and temperature.
        """
        if round_index in self.waiting:
            return
        answer: Future[Written] = Future()

        def ask() -> None:
            try:
                answer.set_result(self.client.ask(batch, seeds, *sampling, own_contents=True))
            except BaseException as error:  # it is raised where the answer is taken
                answer.set_exception(error)

        self.waiting[round_index] = Waiting(self.client.last_sync, batch.study_id, answer)
        threading.Thread(target=ask, name=f"rollout {round_index}", daemon=True).start()

    def take(self, round_index: int, batch: Batch, device: torch.device) -> Rollout | None:
        """The rollout of a round, once the servers have written it; None if they were not asked for it ahead.

        It is kept until a later round is taken: this round may fail and be repeated.

        Raises:
            RunError: If the servers failed.
            UserError: If it is of other studies.
        """
        self.waiting = {index: waiting for index, waiting in self.waiting.items() if index >= round_index}
        waiting = self.waiting.get(round_index)
        self.age = 0 if waiting is None else round_index - waiting.sampled_in
        if waiting is None:
            return None
        if waiting.study_id != batch.study_id:
            raise UserError(
                f"The checkpoint holds completions for other studies than round {round_index} has ({batch.study_id[0]} "
                f"in place of {waiting.study_id[0]}): use the run's own data, or start a new run from its policy with "
                "model.init_args.policy."
            )
        return to_rollout(self.client.policy, *waiting.answer.result(), device)

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Rollouts by round, once they are written; those at which the servers failed are left out."""
        found = {}
        for index, waiting in self.waiting.items():
            if waiting.answer.exception() is None:
                tokens, logps = waiting.answer.result()
                names = {"sampled_in": waiting.sampled_in, "study_id": waiting.study_id}
                found[index] = {**names, "tokens": tokens, "logps": logps}
        return found

    def load_state_dict(self, states: Sequence[Mapping[int, Mapping[str, Any]]], rank: int) -> None:
        """Resume from a checkpoint.

        Args:
            states: State of each rank; rounds that a rank lacks are left out on all of them.
            rank: This rank.
        """
        self.waiting = {}
        for index, state in states[rank].items():
            if all(index in other for other in states):
                answer: Future[Written] = Future()
                answer.set_result((state["tokens"], state["logps"]))
                self.waiting[int(index)] = Waiting(state["sampled_in"], list(state["study_id"]), answer)
