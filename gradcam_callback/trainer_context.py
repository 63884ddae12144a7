"""Door: the trainer around a look. Its processes, its log directory, and a validation as a model finds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import RunningStage

from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.reporting.sinks.files import AlertFile, PanelFiles, run_folder
from gradcam_callback.reporting.sinks.sink import Sink
from gradcam_callback.reporting.sinks.tensorboard import TensorBoardSink, ensure_room_in_events

_FOLDERS: WeakKeyDictionary[Trainer, str] = WeakKeyDictionary()  # a run keeps its folder in all its stages


def ranks_of(trainer: Trainer) -> ProcessGroup:
    """The processes of a run, and whether they have to go through a forward pass together.

    Under DDP each holds the whole model, and takes a share of the probes. Under any other strategy with several
    processes, they all take part in every pass, because some shard the weights (FSDP2, tensor parallelism).
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    return ProcessGroup(trainer.global_rank, trainer.world_size, sharded=not whole and trainer.world_size > 1)


def obstacle(trainer: Trainer) -> str | None:
    """Why there can be no maps under the trainer's strategy; None where there can be."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        return "FSDPStrategy keeps the weights of several layers in one flat parameter"
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
        return "DeepSpeedStrategy in stage 3 takes the weights of each layer apart"
    return None


def place_to_write(trainer: Trainer) -> tuple[list[Sink], str | None]:
    """Where reports go, and the folder of panels that become files; nothing where this process has nothing to write.

    Every process has to call it: asking for the log directory is a collective call.
    """
    directory = trainer.log_dir or trainer.default_root_dir
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return [], None
    board = next((logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)
    if board is not None:
        return [TensorBoardSink(board.experiment), AlertFile(board.log_dir)], None
    if trainer not in _FOLDERS:
        if trainer.logger is None:
            _FOLDERS[trainer] = run_folder(directory)
        elif hasattr(trainer.logger, "log_dir"):
            _FOLDERS[trainer] = str(directory)
        else:
            _FOLDERS[trainer] = run_folder(directory, trainer.logger.name, trainer.logger.version)
    folder = _FOLDERS[trainer]
    return [PanelFiles(folder), AlertFile(folder)], folder


def log_metrics(trainer: Trainer, logger: Logger, scalars: dict[str, float]) -> None:
    """Hand scalars to a logger.

    Raises:
        OSError: An event file has no room for them; see `reporting.sinks.room`.
    """
    if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
        ensure_room_in_events(logger.experiment)
    logger.log_metrics(scalars, step=trainer.global_step)


@contextmanager
def as_in_validation(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """As the batch hooks and the forward of a model find things in a validation: many ask `self.trainer.training`."""
    stage, modes = trainer.state.stage, {module: module.training for module in pl_module.modules()}
    trainer.state.stage = RunningStage.VALIDATING
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        trainer.state.stage = stage
        for module, training in modes.items():
            module.training = training


def transfer(trainer: Trainer, batch: Any, dataloader_idx: int) -> Any:
    """What the evaluation loop does to a batch before the model gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)
