"""Communication volume of a round, and the time that it takes.

In a ring of W ranks, a collective sends from every rank (Thakur, Rabenseifner, Gropp, 2005):

| collective | bytes that a rank sends | steps |
|---|---|---|
| all-gather of B bytes in all | (W - 1) / W B | W - 1 |
| reduce-scatter of B bytes | (W - 1) / W B | W - 1 |
| all-reduce of B bytes | 2 (W - 1) / W B | 2 (W - 1) |

With D bytes of decoder layers, A bytes of trained weights that are replicated on every rank, F and R micro-batches of
the policy and of the reference, and S optimizer steps, a round needs:

| strategy | all-gathers | reduce-scatters | all-reduces |
|---|---|---|---|
| DDP | - | - | S A |
| FSDP2, LoRA | (2 F + R + 1) D | - | S A |
| FSDP2, all weights | (2 F + R + 1) D | F D | S A |

The policy gathers each layer for its forward and again for its backward pass, the reference gathers it once, and a
rollout gathers all layers once. The first backward pass of a round also gathers the last layer unnecessarily, because
FSDP2 expects a backward pass through the earlier passes without gradients. Replicated gradients are averaged once per
step, in buckets of `BUCKET` elements, so that the volume of DDP does not depend on the micro-batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mrg.commands.size.activations import TRAINED
from mrg.commands.size.geometry import Geometry
from mrg.commands.size.memory import Plan
from mrg.modules.optimizer import BUCKET


@dataclasses.dataclass(frozen=True)
class Volume:
    """Communication volume of a round, not yet divided among ranks.

    Args:
        gathered: Bytes of all-gathers.
        scattered: Bytes of reduce-scatters.
        reduced: Bytes of all-reduces.
        num_gathers: Number of all-gathers and reduce-scatters.
        num_reduces: Number of all-reduces, an estimate if there are several.
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
        """Time of all collectives, one after another.

        Args:
            world_size: Number of ranks.
            bandwidth: Bytes per second over the slowest link of a rank.
            latency: Seconds per step of a ring.
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
    """Communication volume of a round.

    Args:
        shape: Geometry of the model.
        plan: The settings; `world_size` above 1.
        policy_passes: Micro-batches of the policy per round, the maximum over ranks if layers are sharded.
        reference_passes: Micro-batches of the reference per round; 0 without a KL term.
        num_steps: Optimizer steps per round.
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
    extra = 1 if reference_passes or rollouts else 0
    return Volume(
        gathers * decoder + extra * layer,
        scatters * decoder,
        num_steps * whole,
        (gathers + scatters) * shape.num_layers + extra,
        num_reduces,
    )


def round_seconds(
    phases: Mapping[str, float], sent: Volume, world_size: int, bandwidth: float, latency: float, wait: float = 1.0
) -> tuple[float, float]:
    """Seconds of a round on several ranks with the same number of studies per rank as measured on one.

    The ranks synchronize after rollout and rewards, so that all wait for the slowest. Communication within passes is
    hidden behind computation in the best case, and not at all in the worst.

    Args:
        phases: Seconds of each phase on one device: vision, rollout, reward, reference and policy.
        sent: Communication volume of a round.
        world_size: Number of ranks.
        bandwidth: Bytes per second over the slowest link of a rank.
        latency: Seconds per step of a ring.
        wait: Mean ratio of the slowest rank's rollout time to that of one rank, simulated by `benchmarks/scaling.py`.

    Returns:
        Minimum and maximum.
    """
    alone = sum(phases.values()) + (wait - 1) * phases.get("rollout", 0.0)
    if world_size == 1:
        return alone, alone
    reduced = dataclasses.replace(sent, gathered=0, scattered=0, num_gathers=0)
    exposed = reduced.seconds(world_size, bandwidth, latency)
    hidden = sent.seconds(world_size, bandwidth, latency) - exposed
    computing = phases.get("policy", 0.0) + phases.get("reference", 0.0)
    return alone + exposed + max(0.0, hidden - computing), alone + exposed + hidden
