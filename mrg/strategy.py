"""Strategies that a configuration may name, and those that it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from mrg.errors import UserError


class FSDP2(ModelParallelStrategy):
    """FSDP2 over all processes: decoder layers are sharded, see `mrg.modules.policy.fsdp`.

    For full training, or for models whose frozen weights do not fit beside the activations. Up to 8B with LoRA,
    DDP is faster: it never sends weights.

    Args:
        **kwargs: See Lightning's `ModelParallelStrategy`; checkpoints are consolidated by default, and
            `save_distributed_checkpoint: true` writes one file per rank.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            **kwargs,
        )

    def setup_environment(self) -> None:
        """Take as many ranks as there are processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained; the frozen base is on disk already and is not gathered."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = not self._save_distributed_checkpoint
        options = StateDictOptions(full_state_dict=whole, cpu_offload=True, ignore_frozen_params=True)
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Check that a checkpoint is the policy's before its weights are taken."""
        path = Path(self.broadcast(checkpoint_path))
        known = path / "meta.pt" if path.is_dir() else path
        module = self.lightning_module
        assert module is not None
        meta: dict[str, Any] = torch.load(known, map_location="cpu", weights_only=True, mmap=True)
        module.on_load_checkpoint(meta)
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only)
        self._load_parts(path)
        return meta

    def _load_parts(self, path: Path) -> None:
        """Read one file per rank; the ranks may be others than those that wrote. What is frozen is not in them."""
        from torch.distributed.checkpoint import state_dict as states
        from torch.distributed.checkpoint.state_dict_loader import load

        assert self.model is not None
        options = states.StateDictOptions(ignore_frozen_params=True, strict=False)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        weights = states.get_model_state_dict(self.model, options=options)
        found: dict[str, Any] = {"state_dict": {name: value for name, value in weights.items() if name in trained}}
        for index, optimizer in enumerate(self.optimizers):
            found[f"optimizer_{index}"] = states.get_optimizer_state_dict(self.model, optimizer, options=options)
        load(found, checkpoint_id=path)
        states.set_model_state_dict(self.model, found["state_dict"], options=options)
        for index, optimizer in enumerate(self.optimizers):
            states.set_optimizer_state_dict(self.model, optimizer, found[f"optimizer_{index}"], options=options)


def check_strategy(strategy: Strategy, load_in_4bit: bool = False) -> None:
    """Refuse what the modules do not know, before anything is loaded.

    Args:
        strategy: The trainer's.
        load_in_4bit: Whether the frozen weights are held in 4 bits.

    Raises:
        ValueError: If it is neither a single device, nor DDP, nor `FSDP2`, or `FSDP2` cannot hold such weights.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
        raise UserError(
            "Expected trainer.strategy to be 'auto', 'ddp' or mrg.strategy.FSDP2 (configs/strategy/fsdp.yaml), but got "
            f"{type(strategy).__name__}."
        )
    if isinstance(strategy, FSDP2) and load_in_4bit:
        raise UserError(
            "FSDP2 does not share out weights in 4 bits: set trainer.strategy to ddp, or model.init_args.load_in_4bit "
            "to false."
        )


def check_ranks(num_studies: int, world_size: int) -> None:
    """Refuse more processes than there are studies to train on.

    Raises:
        ValueError: If there are.
    """
    if num_studies < world_size:
        raise UserError(
            f"Expected a training study for each of the {world_size} processes, but the data holds {num_studies}: "
            "lower trainer.devices or num_nodes."
        )
