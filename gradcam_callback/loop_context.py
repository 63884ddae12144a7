"""What is asked of a training loop of the user's own: plain torch, or Fabric, which need not be installed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradcam_callback import entry_point
from gradcam_callback.engine import in_place
from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.probes import CaptureContext
from gradcam_callback.reporting.sinks.files import AlertFile
from gradcam_callback.reporting.sinks.registry import ChosenSink, OpenedSinks, add_run_sinks
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink, open_event_file, write_scalars
from gradcam_callback.run_context import RunContext

# Class names, since neither package has to be there.
_FABRIC = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")
_UNSUPPORTED = {
    "FullyShardedDataParallel": "FullyShardedDataParallel keeps the weights of several layers in one flat parameter",
    "DeepSpeedEngine": "DeepSpeed may take the weights of each layer apart",
}


class LoopContext(RunContext):
    """What a session asks, of a loop that says itself where it stands.

    Of several processes that hold the whole model, the first does all. Of a sharded model all take part.

    Args:
        model: A module, as it is or wrapped by Fabric, DistributedDataParallel or `torch.compile`.
        log_dir: A folder, or a `SummaryWriter` of torch.

    Attributes:
        model: The user's own module, without what it is wrapped in.
        takes_part: Whether this process has anything to do.
    """

    def __init__(self, model: nn.Module, log_dir: Any) -> None:
        if not isinstance(model, nn.Module):
            raise BadInputError(f"model: expected a torch.nn.Module, got {type(model).__name__}.")
        is_writer = hasattr(log_dir, "add_scalar") and hasattr(log_dir, "_get_file_writer")
        if not is_writer and not isinstance(log_dir, (str, os.PathLike)):
            raise BadInputError(
                f"log_dir: expected a folder or a torch.utils.tensorboard.SummaryWriter, got {type(log_dir).__name__}."
            )
        self._reason = next(filter(None, map(_reason_against, model.modules())), None)
        self._precision = _precision_of(model)
        self.model = _unwrapped(model)
        self._writer: Any = log_dir if is_writer else None
        self._folder = str(log_dir.log_dir) if is_writer else os.fspath(log_dir)
        self._owns_writer = not is_writer
        self._step, self._epoch, self._counts_looks = 0, 0, False
        self._processes = _processes_of(self.model)
        self.takes_part = self._processes.rank == 0 or self._processes.size > 1

    def move_to(self, step: int, epoch: int | None, looks: int) -> None:
        """Say where the loop stands.

        Args:
            step: How many optimizer steps there were.
            epoch: Counted from 0; None where the loop has none, and `looks` stands for it.
            looks: How many looks there were before.
        """
        self._step, self._epoch, self._counts_looks = step, looks if epoch is None else epoch, epoch is None

    @property
    def step(self) -> int:
        """As the loop has said."""
        return self._step

    @property
    def epoch(self) -> int:
        """As the loop has said, or the number of the look."""
        return self._epoch

    @property
    def stage(self) -> str:
        """A training."""
        return "fit"

    @property
    def moment(self) -> str:
        """The step; and the epoch where the loop has said it."""
        return f"step {self.step}" if self._counts_looks else super().moment

    @property
    def processes(self) -> ProcessGroup:
        """This process alone; of a sharded model, all."""
        return self._processes

    @property
    def device(self) -> torch.device:
        """Where the first weight or buffer is: a loop may move its model at any time."""
        held = next(chain(self.model.parameters(), self.model.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    @property
    def unsupported_reason(self) -> str | None:
        """Of FSDP (1) and DeepSpeed."""
        return self._reason

    def forward_context(self) -> AbstractContextManager[Any]:
        """That of Fabric's precision; without Fabric, whatever the loop has switched on where it looks."""
        return nullcontext() if self._precision is None else self._precision.forward_context()

    def convert_input(self, images: Any) -> Any:
        """As Fabric's precision does it; without Fabric, as they are."""
        return images if self._precision is None else self._precision.convert_input(images)

    def replica_options(self, method: str) -> ReplicaOptions:
        """A replica that logs nothing."""
        return ReplicaOptions(prepare=partial(entry_point.adapt, name=method))

    def capture_context(self, positions: Sequence[int] | None, **options: Any) -> CaptureContext:
        """Of a loop nothing is known but the model."""
        return CaptureContext(positions=positions, **options)

    def open_sinks(self, chosen: Sequence[ChosenSink]) -> OpenedSinks:
        """An event file, the file of alerts and what was asked for, in the first process."""
        if not self.is_global_zero:
            return OpenedSinks()
        if self._writer is None:
            self._writer = open_event_file(self._folder)
        opened = OpenedSinks([TensorBoardSink(self._writer), AlertFile(self._folder)])
        add_run_sinks(opened, self._folder, chosen)
        return opened

    def log_scalars(self, scalars: dict[str, float]) -> list[Exception]:
        """Into the event file."""
        try:
            if self._writer is not None:
                write_scalars(self._writer, scalars, self.step)
        except Exception as error:  # a full disk
            return [error]
        return []

    def close(self) -> None:
        """Close the event file, unless it is the user's."""
        if self._owns_writer and self._writer is not None:
            self._writer.close()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module."""
    while True:
        wrapped: Any = model.module if _is_fabric(model) or isinstance(model, DistributedDataParallel) else None
        wrapped = model._modules.get("_orig_mod") if wrapped is None else wrapped  # of torch.compile
        if wrapped is None:
            return model
        model = wrapped


def _precision_of(model: nn.Module) -> Any:
    """Fabric's precision plugin, which its wrapper takes from its strategy; None without Fabric."""
    return model._strategy.precision if _is_fabric(model) else None  # type: ignore[union-attr]


def _is_fabric(model: nn.Module) -> bool:
    return type(model).__module__ in _FABRIC


def _reason_against(module: nn.Module) -> str | None:
    return next(filter(None, (_UNSUPPORTED.get(kind.__name__) for kind in type(module).__mro__)), None)


def _processes_of(model: nn.Module) -> ProcessGroup:
    if not dist.is_available() or not dist.is_initialized():
        return ProcessGroup()
    if in_place.is_sharded(list(model.modules())):
        return ProcessGroup(dist.get_rank(), dist.get_world_size(), sharded=True)
    return ProcessGroup(dist.get_rank())
