"""Training in several processes: who takes part, and the few numbers they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wdm_export.config import TrainConfig
from wdm_runtime.errors import InputError

_BACKEND = "gloo"  # training runs on CPUs


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def shards(self, config: TrainConfig) -> range:
        """The data shards that this process draws from.

        Raises
        ------
        InputError
            The shards cannot be dealt out evenly.
        """
        if config.shards % self.size:
            raise InputError(
                f"Training in {self.size} processes got {config.shards} data shards; expected a "
                f"multiple of {self.size}. Set --shards, or start another number of processes."
            )
        each = config.shards // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over the processes."""
        return network if self.size == 1 else DistributedDataParallel(network)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors, the same in each; ``values`` is reduced in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def agree(self, value: bool) -> bool:
        """Whether all processes have the same value."""
        return int(self.total(torch.tensor(int(value)))) in (0, self.size)

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return int(self.total(torch.tensor(int(value)))) > 0

    def of_first(self, value: float) -> float:
        """The first process's value: clocks differ, and all have to stop at the same step."""
        return float(self.total(torch.tensor(value if self.leads else 0.0, dtype=torch.float64)))


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Meet the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group(_BACKEND)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
