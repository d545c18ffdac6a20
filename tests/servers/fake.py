"""An HTTP server that answers like vLLM, in this process: what it writes depends on the seed and on the adapter."""

import random
import time

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.load import load_policy
from tests.servers.json_server import JSONServer


class FakeVLLM(JSONServer):
    """Writes random tokens for the studies of a policy.

    Args:
        saved: Folder of the policy.
        studies: Studies with each number of images that will be asked for.
        max_pixels: The policy's pixel budget.
        delay: Seconds that an answer takes.
    """

    def __init__(self, saved, studies, max_pixels, delay=0.0):
        policy = load_policy(saved, max_pixels=max_pixels)
        batch = StudyCollator(policy.processor, "Report:")(list(studies))
        self.prompts = {
            len(views): ids[mask].tolist()
            for views, ids, mask in zip(batch.views, batch.prompt_ids, batch.prompt_mask, strict=True)
        }
        self.eos, self.delay = policy.eos_id, delay
        self.tokens = sorted(set(range(len(policy.processor.tokenizer))) - {self.eos, *policy.banned_ids})
        self.asked = []  # names of adapters
        self.failing = False
        self.before_answer = lambda adapter: None
        super().__init__()

    def reply(self, command, path, request):
        return self.answer(path, request or {})

    def answer(self, path, request):
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny", "parent": None}]}
        if path == "/openapi.json":
            return 200, {"paths": {"/v1/load_lora_adapter": {}}}
        if path != "/v1/chat/completions":
            return (503 if self.failing else 200), {}
        if self.failing:
            return 503, {}
        self.asked.append(request["model"])
        self.before_answer(request["model"])
        time.sleep(self.delay)
        number = request["model"].rsplit("-", 1)[-1]  # of the round whose policy it is
        rng = random.Random(f"{request['seed']} {number}")
        choices = []
        for _ in range(request["n"]):
            length = rng.randrange(1, request["max_completion_tokens"])
            tokens = [rng.choice(self.tokens) for _ in range(length)] + [self.eos]
            logps = [{"logprob": -6 * rng.random()} for _ in tokens]
            choices.append({"token_ids": tokens, "logprobs": {"content": logps}})
        images = sum(part["type"] == "image_url" for part in request["messages"][0]["content"])
        return 200, {"choices": choices, "prompt_token_ids": self.prompts[images]}
