"""What is asked of the Trainer: its processes, stage, loggers and directories, and a view of it for a replica."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from gradcam_callback import entry_point
from gradcam_callback.engine.replica import ReplicaOptions, copy_structure, isolated
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.lightning_api import (
    CombinedLoader,
    DDPStrategy,
    DeepSpeedStrategy,
    DummyLogger,
    FSDPStrategy,
    LightningDataModule,
    LightningModule,
    Logger,
    RichProgressBar,
    Trainer,
    TrainerFn,
    each,
    overrides,
)
from gradcam_callback.probes import CaptureContext
from gradcam_callback.reporting.sinks.files import AlertFile, PanelFiles, RecordingFile, run_folder
from gradcam_callback.reporting.sinks.registry import (
    TENSORBOARD,
    ChosenSink,
    OpenedSinks,
    add_logger_sinks,
    add_run_sinks,
    is_logger,
)
from gradcam_callback.reporting.sinks.sink import Sink
from gradcam_callback.reporting.sinks.tensorboard import ensure_space_in_events
from gradcam_callback.run_context import RunContext

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def processes_of(trainer: Trainer) -> ProcessGroup:
    """The processes of a run, and whether they have to go through a forward pass together.

    Under DDP each holds the whole model, and takes a share of the probes. Under any other strategy with several
    processes, they all take part in every pass, because some shard the weights (FSDP2, tensor parallelism).
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, each(DDPStrategy)) and not isinstance(strategy, each(DeepSpeedStrategy))
    return ProcessGroup(trainer.global_rank, trainer.world_size, sharded=not whole and trainer.world_size > 1)


def unsupported_reason(trainer: Trainer) -> str | None:
    """Why there can be no maps under the trainer's strategy; None where there can be."""
    strategy = trainer.strategy
    if isinstance(strategy, each(FSDPStrategy)):
        return "FSDPStrategy keeps the weights of several layers in one flat parameter"
    if isinstance(strategy, each(DeepSpeedStrategy)) and strategy.zero_stage_3:
        return "DeepSpeedStrategy in stage 3 takes the weights of each layer apart"
    return None


def stage_of(trainer: Trainer) -> str:
    """What the trainer was asked for: "fit", "validate" or "test"."""
    if trainer.state.fn == TrainerFn.TESTING:
        return "test"
    return "validate" if trainer.state.fn == TrainerFn.VALIDATING else "fit"


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The loaders that are validated or tested with."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return [] if loaders is None else list(CombinedLoader(loaders).flattened)


def deals_samples_out(loader: Any) -> bool:
    """Whether each process gets other samples of a loader than the others.

    An iterable data set is taken to see to that itself, as its users have to.
    """
    dataset, batches = getattr(loader, "dataset", None), getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), getattr(batches, "sampler", None))
    return isinstance(dataset, IterableDataset) or any(isinstance(one, DistributedSampler) for one in samplers)


@dataclass(frozen=True, eq=False)
class TrainerContext(RunContext):
    """What a session asks, of a Trainer and its model.

    Attributes:
        trainer: The Trainer.
        model: The model, as Lightning hands it to hooks.
    """

    trainer: Trainer
    model: LightningModule

    @property
    def step(self) -> int:
        """`trainer.global_step`."""
        return self.trainer.global_step

    @property
    def epoch(self) -> int:
        """`trainer.current_epoch`."""
        return self.trainer.current_epoch

    @property
    def stage(self) -> str:
        """As of `stage_of`."""
        return stage_of(self.trainer)

    @property
    def processes(self) -> ProcessGroup:
        """As of `processes_of`."""
        return processes_of(self.trainer)

    @property
    def device(self) -> torch.device:
        """That of the strategy."""
        return self.trainer.strategy.root_device

    @property
    def unsupported_reason(self) -> str | None:
        """As of the function of this name."""
        return unsupported_reason(self.trainer)

    @property
    def has_validation(self) -> bool:
        """Whether the training validates."""
        return self.trainer.enable_validation

    @property
    def shows_progress(self) -> bool:
        """Where the Trainer shows one; but not beside rich's, since of two that move the cursor neither can be read."""
        bar = self.trainer.progress_bar_callback
        return self.is_global_zero and bar is not None and not isinstance(bar, each(RichProgressBar))

    def forward_context(self) -> AbstractContextManager[Any]:
        """That of the precision plugin."""
        return self.trainer.precision_plugin.forward_context()

    def convert_input(self, images: Any) -> Any:
        """As the precision plugin does it."""
        return self.trainer.precision_plugin.convert_input(images)

    def replica_options(self, method: str) -> ReplicaOptions:
        """As of the function of this name."""
        return replica_options(self.trainer, method)

    def capture_context(self, positions: Sequence[int] | None, **options: Any) -> CaptureContext:
        """Of the loaders that are validated or tested with, which have to be in place."""
        loaders = evaluation_loaders(self.trainer)
        several = any(map(deals_samples_out, loaders))
        return CaptureContext(
            datasets=[getattr(loader, "dataset", None) for loader in loaders],
            positions=positions,
            rank=self.trainer.global_rank if several else 0,
            world_size=self.trainer.world_size if several else 1,
            apply_batch_hooks=batch_hooks(self.trainer, self.model),
            **options,
        )

    def open_sinks(self, chosen: Sequence[ChosenSink]) -> OpenedSinks:
        """As of the function of this name."""
        return open_sinks(self.trainer, chosen)

    def log_scalars(self, scalars: dict[str, float]) -> list[Exception]:
        """As of the function of this name."""
        return log_scalars(self.trainer, self.model, scalars)

    def show_scalars(self, scalars: dict[str, float]) -> None:
        """For callbacks that watch them; no logger is told."""
        self.model.log_dict(scalars, logger=False, sync_dist=self.trainer.world_size > 1)


# A view of the Trainer


class TrainerView:
    """The Trainer as a replica of the model sees it.

    What is read comes from the Trainer. What is written stays here, and loggers take nothing: no trace of the replica
    is left at the Trainer. Plain dicts and lists are handed out as copies, for the same reason.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        mute = DummyLogger()
        state = copy.copy(trainer.state)
        # A probe pass before the first training step is a validation, too: many models ask for that in `forward`.
        stages = sys.modules[type(state).__module__].RunningStage  # of the same package of Lightning
        state.stage = stages.TESTING if trainer.testing else stages.VALIDATING
        vars(self).update(
            _trainer=trainer,
            state=state,
            logger=mute if trainer.loggers else None,
            loggers=[mute for _ in trainer.loggers],
            training=False,
            sanity_checking=False,
            validating=not trainer.testing,
            testing=trainer.testing,
        )

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """For models that ask whether their trainer is one: it is taken for what it is a view of."""
        return type(vars(self)["_trainer"])

    def __getattr__(self, name: str) -> Any:
        value = getattr(vars(self)["_trainer"], name)
        return copy.copy(value) if type(value) in (dict, list, set) else value


def replica_options(trainer: Trainer, method: str = entry_point.FORWARD) -> ReplicaOptions:
    """How a LightningModule is copied: it sees a view of the Trainer, and what it logs reaches nobody.

    Args:
        trainer: The Trainer.
        method: What is called of the module, as for `entry_point.adapt`.
    """
    substitutes: list[tuple[Any, Any]] = [(trainer, TrainerView(trainer))]
    for logger in trainer.loggers:
        substitutes.append((logger, DummyLogger()))
        for name in ("_experiment", "_mlflow_client"):  # `logger.experiment` would make one
            experiment = getattr(logger, name, None)
            if experiment is not None:
                substitutes.append((experiment, DummyLogger().experiment))
    shared = (*each(Trainer), *each(LightningDataModule), *each(Logger))
    prepare = partial(entry_point.adapt, name=method)
    return ReplicaOptions(substitutes=tuple(substitutes), shared_types=shared, prepare=prepare)


# Batch-transfer hooks


def batch_hooks(trainer: Trainer, pl_module: LightningModule) -> Callable[[Any], Any] | None:
    """What the batch-transfer hooks of the user make of a batch, run on a copy; None where there are no such hooks."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    owners = {name: _hook_owner(name, pl_module, datamodule) for name in _BATCH_HOOKS}
    if not any(owners.values()):
        return None
    return partial(_apply_batch_hooks, trainer, pl_module, datamodule, owners)


def _hook_owner(name: str, pl_module: LightningModule, datamodule: LightningDataModule | None) -> Any:
    """The object whose hook Lightning runs: the data module's comes first."""
    if datamodule is not None and overrides(datamodule, name, LightningDataModule):
        return datamodule
    return pl_module if overrides(pl_module, name, LightningModule) else None


def _apply_batch_hooks(
    trainer: Trainer,
    pl_module: LightningModule,
    datamodule: LightningDataModule | None,
    owners: dict[str, Any],
    batch: Any,
) -> Any:
    device = trainer.strategy.root_device
    with isolated(pl_module, replica_options(trainer)) as replica:
        copies: dict[int, Any] = {id(pl_module): replica.model, id(datamodule): copy_structure(datamodule)}
        before, transfer, after = (copies.get(id(owners[name]), replica.model) for name in _BATCH_HOOKS)
        batch = before.on_before_batch_transfer(batch, 0)
        batch = transfer.transfer_batch_to_device(batch, device, 0)
        return after.on_after_batch_transfer(batch, 0)


# Where reports go


_FOLDERS: WeakKeyDictionary[Trainer, str] = WeakKeyDictionary()  # a run keeps its folder in all its stages


def open_sinks(trainer: Trainer, chosen: Sequence[ChosenSink] = ()) -> OpenedSinks:
    """Where panels, alerts and the recording go; nowhere where this process has nothing to write.

    The recording is always in a folder, so that the viewer has it beside whatever logger. Every process has to call it:
    asking for the log directory is a collective call.

    Args:
        trainer: The Trainer.
        chosen: Sinks that the options ask for.
    """
    directory = str(trainer.log_dir or trainer.default_root_dir)
    opened = OpenedSinks()
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return opened
    # TensorBoard's come first: at the end of the run the others read its event file.
    loggers = sorted(trainer.loggers, key=lambda logger: not is_logger(logger, TENSORBOARD))
    folder, files = directory, list[Callable[[str], Sink]]()
    try:
        folder = _run_folder(trainer, loggers, directory)
        files.append(AlertFile)
    except Exception as error:  # the loggers may have another place
        opened.fail("There is no place to write to", error)
    add_logger_sinks(opened, loggers, folder, chosen)
    if files and not (loggers and is_logger(loggers[0], TENSORBOARD)):
        what = "the recording of the Grad-CAM maps is" if opened.sinks else "the Grad-CAM panels and the recording are"
        opened.notice = f"There is no TensorBoardLogger: {what} written under {folder}."
        files += [RecordingFile] if opened.sinks else [RecordingFile, PanelFiles]
    for file in files:
        opened.add(folder, partial(file, folder))
    add_run_sinks(opened, folder, chosen)
    return opened


def _run_folder(trainer: Trainer, loggers: Sequence[Logger], directory: str) -> str:
    """A folder that belongs to this run alone."""
    for logger in loggers:
        own = getattr(logger, "log_dir", None)
        if own:
            return str(own)
    if trainer.logger is not None:
        return run_folder(directory, trainer.logger.name, trainer.logger.version)
    if trainer not in _FOLDERS:
        _FOLDERS[trainer] = run_folder(directory)
    return _FOLDERS[trainer]


def log_scalars(trainer: Trainer, pl_module: LightningModule, scalars: dict[str, float]) -> list[Exception]:
    """Log scalars for other callbacks and for every logger.

    Lightning would log them at its own count of steps, which is one behind in `fit`, and the panels would not stand at
    the same step.

    Returns:
        What went wrong; a logger that fails does not keep the others from theirs.
    """
    errors: list[Exception] = []
    # All processes have the same scalars, but for the seconds, of which this makes the mean.
    several = trainer.world_size > 1
    jobs: list[Callable[[], Any]] = [partial(pl_module.log_dict, scalars, logger=False, sync_dist=several)]
    jobs += [partial(_log_to, trainer, logger, scalars) for logger in trainer.loggers]
    for job in jobs:
        try:
            job()
        except Exception as error:  # the next logger may be in order
            errors.append(error)
    return errors


def _log_to(trainer: Trainer, logger: Any, scalars: dict[str, float]) -> None:
    if is_logger(logger, TENSORBOARD) and trainer.is_global_zero:
        ensure_space_in_events(logger.experiment)
    logger.log_metrics(scalars, step=trainer.global_step)
