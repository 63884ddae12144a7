"""What is asked of the Trainer: its processes, stage, loggers and directories, and a view of it for a replica."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from gradcam_callback import entry_point
from gradcam_callback.engine.replica import ReplicaOptions, copy_structure, isolated
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.reporting.sinks.files import AlertFile, PanelFiles, RecordingFile, run_folder
from gradcam_callback.reporting.sinks.registry import (
    TENSORBOARD,
    ChosenSink,
    OpenedSinks,
    add_logger_sinks,
    is_logger,
)
from gradcam_callback.reporting.sinks.sink import Sink, SinkContext
from gradcam_callback.reporting.sinks.tensorboard import ensure_space_in_events

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def processes_of(trainer: Trainer) -> ProcessGroup:
    """The processes of a run, and whether they have to go through a forward pass together.

    Under DDP each holds the whole model, and takes a share of the probes. Under any other strategy with several
    processes, they all take part in every pass, because some shard the weights (FSDP2, tensor parallelism).
    """
    strategy = trainer.strategy
    whole = isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy)
    return ProcessGroup(trainer.global_rank, trainer.world_size, sharded=not whole and trainer.world_size > 1)


def unsupported_reason(trainer: Trainer) -> str | None:
    """Why there can be no maps under the trainer's strategy; None where there can be."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy):
        return "FSDPStrategy keeps the weights of several layers in one flat parameter"
    if isinstance(strategy, DeepSpeedStrategy) and strategy.zero_stage_3:
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
        state.stage = RunningStage.TESTING if trainer.testing else RunningStage.VALIDATING
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
    shared = (Trainer, LightningDataModule, Logger)
    prepare = partial(_prepare, method)
    return ReplicaOptions(substitutes=tuple(substitutes), shared_types=shared, prepare=prepare)


def _prepare(method: str, model: nn.Module) -> None:
    entry_point.adapt(model, method)
    for module in model.modules():
        if isinstance(module, LightningModule):
            vars(module).update(log=_log_nothing, log_dict=_log_nothing)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """In place of `LightningModule.log` and `log_dict`."""


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
    if datamodule is not None and is_overridden(name, datamodule, LightningDataModule):
        return datamodule
    return pl_module if is_overridden(name, pl_module, LightningModule) else None


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
        files += [RecordingFile] if opened.sinks else [RecordingFile, PanelFiles]
    for file in files:
        opened.add(folder, partial(file, folder))
    for one in chosen:
        if one.logger is None:
            opened.add(one.text, partial(one.make, SinkContext(None, folder)))
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


def _log_to(trainer: Trainer, logger: Logger, scalars: dict[str, float]) -> None:
    if is_logger(logger, TENSORBOARD) and trainer.is_global_zero:
        ensure_space_in_events(logger.experiment)  # type: ignore[attr-defined]
    logger.log_metrics(scalars, step=trainer.global_step)
