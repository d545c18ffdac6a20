"""What ranks send each other in a round, and how long it takes.

A collective over W ranks of a ring sends from every rank (Thakur, Rabenseifner, Gropp, 2005):

| collective | bytes that a rank sends | steps |
|---|---|---|
| all-gather of B bytes in all | (W - 1) / W B | W - 1 |
| reduce-scatter of B bytes | (W - 1) / W B | W - 1 |
| all-reduce of B bytes | 2 (W - 1) / W B | 2 (W - 1) |

What is sent, with D the bytes of the decoder layers, A those of what is trained and whole on every rank, F and R the
micro-batches of the policy and of the reference, and S the optimiser steps of a round:

| strategy | all-gathers | reduce-scatters | all-reduces |
|---|---|---|---|
| DDP | - | - | S A |
| FSDP2, LoRA | (2 F + R + 1) D | - | S A |
| FSDP2, all weights | (2 F + R + 1) D | F D | S A |

The policy gathers each layer for its forward and again for its backward pass, the reference once, and a rollout all
layers once. A round's first backward pass also gathers the last layer once in vain: FSDP2 takes the passes without
gradients before it for what it has to go back through. Gradients that are whole are averaged once a step, so that DDP's
volume does not depend on the micro-batches, and `BUCKET` numbers at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mrg.commands.size.activations import TRAINED
from mrg.commands.size.geometry import Geometry
from mrg.commands.size.memory import Plan
from mrg.modules.policy.fsdp import BUCKET


@dataclasses.dataclass(frozen=True)
class Volume:
    """What a round moves, before it is cut by the number of ranks.

    Args:
        gathered: Bytes of all-gathers.
        scattered: Bytes of reduce-scatters.
        reduced: Bytes of all-reduces.
        num_gathers: How many all-gathers and reduce-scatters there are.
        num_reduces: How many all-reduces; where there are several, an estimate.
    """

    gathered: int
    scattered: int
    reduced: int
    num_gathers: int
    num_reduces: int

    def sent(self, world_size: int) -> float:
        """Bytes that each rank sends."""
        return (self.gathered + self.scattered + 2 * self.reduced) * (world_size - 1) / world_size

    def seconds(self, world_size: int, bandwidth: float, latency: float) -> float:
        """Time of all of it, one after another.

        Args:
            world_size: Number of ranks.
            bandwidth: Bytes per second that a rank sends over its slowest link.
            latency: Seconds of one step of a ring.
        """
        steps = (self.num_gathers + 2 * self.num_reduces) * (world_size - 1)
        return self.sent(world_size) / bandwidth + steps * latency


def volume(
    shape: Geometry,
    plan: Plan,
    policy_passes: int,
    reference_passes: int,
    num_steps: int = 1,
) -> Volume:
    """What a round sends.

    Args:
        shape: Of the model.
        plan: Its settings; `world_size` above 1.
        policy_passes: Micro-batches of the policy in a round, the most of all ranks where layers are sharded.
        reference_passes: Those of the reference; 0 without a KL term.
        num_steps: Optimiser steps of a round.
    """
    training, sharded = plan.training, plan.strategy == "fsdp"
    if training.rank:
        whole, num_whole = shape.adapter(training.rank), 2 * len(shape.linears)
    else:
        whole = shape.total - shape.vision - (shape.decoder if sharded else 0)
        num_whole = shape.num_tensors - shape.num_vision_tensors - (shape.num_decoder_tensors if sharded else 0)
    if plan.train_vision:
        whole, num_whole = whole + shape.vision, num_whole + shape.num_vision_tensors
    num_reduces = num_steps * min(num_whole, -(-whole // BUCKET))
    whole *= TRAINED
    if not sharded:
        return Volume(0, 0, num_steps * whole, 0, num_reduces)
    rollouts = 0 if plan.servers or plan.group_size == 1 else 1
    gathers = 2 * policy_passes + reference_passes + rollouts
    scatters = 0 if training.rank else policy_passes
    decoder, layer = (count * training.language for count in (shape.decoder, shape.largest_layer))
    vain = 1 if reference_passes or rollouts else 0
    return Volume(
        gathers * decoder + vain * layer,
        scatters * decoder,
        num_steps * whole,
        (gathers + scatters) * shape.num_layers + vain,
        num_reduces,
    )


def round_seconds(
    phases: Mapping[str, float], sent: Volume, world_size: int, bandwidth: float, latency: float, wait: float = 1.0
) -> tuple[float, float]:
    """Seconds of a round on several ranks, each with as many studies as the one that was measured.

    The ranks meet after the rollout and the rewards, so that all wait for the slowest. What they send in the passes is
    hidden behind computation at best, and added to it at worst.

    Args:
        phases: Seconds of each phase on one device: vision, rollout, reward, reference and policy.
        sent: What a round sends.
        world_size: Number of ranks.
        bandwidth: See `Volume.seconds`.
        latency: See `Volume.seconds`.
        wait: Rollout time of the slowest rank over that of one rank, on average, as `benchmarks/scaling.py` simulates.

    Returns:
        The least and the most.
    """
    alone = sum(phases.values()) + (wait - 1) * phases.get("rollout", 0.0)
    if world_size == 1:
        return alone, alone
    reduced = dataclasses.replace(sent, gathered=0, scattered=0, num_gathers=0)
    exposed = reduced.seconds(world_size, bandwidth, latency)
    hidden = sent.seconds(world_size, bandwidth, latency) - exposed
    computing = phases.get("policy", 0.0) + phases.get("reference", 0.0)
    return alone + exposed + max(0.0, hidden - computing), alone + exposed + hidden
