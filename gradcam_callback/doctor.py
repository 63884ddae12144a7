"""`gradcam-callback doctor`, `layers`, `check`, `explain`: look at a model once, without training.

An examination is a validation in which the model's own `validation_step` is left out: batches are read until the
callbacks have their probes, then they diagnose.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from gradcam_callback.callback import GradCAMCallback
from gradcam_callback.check import check_weights, print_checks
from gradcam_callback.engine.layer_listing import ListedLayer
from gradcam_callback.errors import BadInputError, ForwardFailedError
from gradcam_callback.explaining import Explanation, explain, new_folder, take_files
from gradcam_callback.lightning_api import (
    Callback,
    DummyLogger,
    LightningDataModule,
    LightningModule,
    Trainer,
    each,
    installed,
)
from gradcam_callback.progress import progress_bar
from gradcam_callback.reporting.terminal import Report, merge_targets, print_layers, print_reports

T = TypeVar("T")
HEALTHY, NULL, COULD_NOT_RUN = 0, 1, 2


class DoctorTrainer(Trainer):
    """A Trainer that can also examine a model without training it."""

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        json: bool = False,
    ) -> None:
        """Take the probes, run the model, and print the way of the gradient from the score back to each target layer.

        Nothing is trained, and nothing is written to the disk. The exit status is 0 if every gradient is there, 1 if
        one is None, zero or not finite, and 2 if the model could not be examined.

        Args:
            model: The model; given in the configuration.
            datamodule: The data; given in the configuration.
            ckpt_path: A checkpoint whose weights are taken; by default, the fresh model.
            json: Print JSON for machines instead of tables for people.
        """
        with _stdout_for_reports(json):
            reports = examine(self, _callbacks_of(self), model, datamodule=datamodule, ckpt_path=ckpt_path)
        _conclude(reports, json)

    def layers(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        json: bool = False,
    ) -> None:
        """Take a probe, run the model, and list its layers: what they return, and which of them `auto` takes, and why.

        Nothing is trained, and nothing is written to the disk.

        Args:
            model: The model; given in the configuration.
            datamodule: The data; given in the configuration.
            ckpt_path: A checkpoint whose weights are taken; by default, the fresh model.
            json: Print JSON for machines instead of a table for people.
        """
        callbacks = _callbacks_of(self)[:1] or [GradCAMCallback(probes=1)]
        with _stdout_for_reports(json):
            listed = ask(self, callbacks, _list_layers, model, datamodule=datamodule, ckpt_path=ckpt_path)
        print_layers(listed, as_json=json)

    def check(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        json: bool = False,
    ) -> None:
        """Take the probes, and see whether their maps change as the weights are randomised, from the score backwards.

        A map that stays the same although the weights are gone shows something of the image, and nothing of the model
        (Adebayo et al., "Sanity Checks for Saliency Maps", 2018). Nothing is trained, and nothing is written to the
        disk. The exit status is 0 if every map depends on the weights, 1 if one does not or there is none, and 2 if the
        model could not be examined.

        Args:
            model: The model; given in the configuration.
            datamodule: The data; given in the configuration.
            ckpt_path: A checkpoint whose weights are taken; by default, the fresh model.
            json: Print JSON for machines instead of tables for people.
        """
        callbacks = _callbacks_of(self) or [GradCAMCallback()]
        with _stdout_for_reports(json):
            results = ask(self, callbacks, check_weights, model, datamodule=datamodule, ckpt_path=ckpt_path)
        print_checks(results, as_json=json)
        sys.exit(HEALTHY if all(result.depends_on_weights for result in results) else NULL)

    def explain(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        images: list[str] | None = None,
        output: str = "explained",
    ) -> None:
        """Explain images with the weights of a checkpoint, and write panels, the recording and its report.

        Nothing is trained. Image files pass through the transform of the validation data; without any, the probes of
        the callback are explained. The exit status is 0 if every gradient is there, 1 if one is None, zero or not
        finite, and 2 if the model could not be examined.

        Args:
            model: The model; given in the configuration.
            datamodule: The data; given in the configuration.
            ckpt_path: A checkpoint whose weights are taken; by default, the fresh model.
            images: Image files or folders of them.
            output: The folder to write to; of several callbacks, each writes into a folder of its own in it.
        """
        callbacks = _callbacks_of(self) or [GradCAMCallback()]
        folder = new_folder(output)
        folders = {
            callback: folder / f"callback_{number}" if len(callbacks) > 1 else folder
            for number, callback in enumerate(callbacks, start=1)
        }
        for callback in callbacks if images else ():
            take_files(callback, images or ())
        weights = "untrained weights" if ckpt_path is None else Path(ckpt_path).name

        def look(callback: GradCAMCallback, trainer: Trainer, pl_module: LightningModule) -> list[Explanation]:
            place = folders[callback]
            return [Explanation(place, explain(callback, trainer, pl_module, place, weights))]

        explanations = ask(self, callbacks, look, model, datamodule=datamodule, ckpt_path=ckpt_path)
        for explanation in explanations:
            explanation.conclude()
        sys.exit(NULL if any(explanation.has_null for explanation in explanations) else HEALTHY)


def examine_program(command: Sequence[str], *, as_json: bool) -> NoReturn:
    """Run a user's program up to its first `trainer.fit`, and examine what it would train.

    Args:
        command: What would stand behind `python`: a file or `-m` and a module, then the program's own arguments.
        as_json: As for `DoctorTrainer.doctor`. What the program prints goes to stderr then.

    Raises:
        SystemExit: Always; its status is that of `DoctorTrainer.doctor`.
        ValueError: The program never came to `trainer.fit`, or it cannot be examined.
    """
    examined: list[list[Report]] = []

    ended: object = None
    with _stdout_for_reports(as_json) as stack:
        for package in installed():
            stack.enter_context(_replaced(package.Trainer, "fit", _examining(package.Trainer.fit, examined)))
        try:
            _run(command)
        except SystemExit as end:
            ended = end.code
    if not examined:
        how = "" if ended is None else f" (status {ended!r})"
        raise BadInputError(
            f"{' '.join(command)} ended{how} without a call of `trainer.fit`. Give the command that starts its "
            "training, e.g. `gradcam-callback doctor train.py fit --config config.yaml`."
        )
    _conclude(examined[0], as_json)


def _examining(fit: Callable[..., Any], examined: list[list[Report]]) -> Callable[..., NoReturn]:
    """What takes the place of `Trainer.fit`."""

    @functools.wraps(fit)
    def examine_instead(
        self: Trainer,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        **options: Any,
    ) -> NoReturn:
        if isinstance(train_dataloaders, each(LightningDataModule)):
            datamodule = train_dataloaders
        callbacks = _callbacks_of(self) or [GradCAMCallback()]
        examined.append(examine(self, callbacks, model, val_dataloaders, datamodule=datamodule, **options))
        raise SystemExit

    return examine_instead


def examine(
    trainer: Trainer,
    callbacks: Sequence[GradCAMCallback],
    model: LightningModule,
    dataloaders: Any = None,
    *,
    datamodule: LightningDataModule | None = None,
    **options: Any,
) -> list[Report]:
    """Have callbacks diagnose a model where it and its data are as in a validation; see `ask`."""
    return ask(trainer, callbacks, _diagnose, model, dataloaders, datamodule=datamodule, **options)


def ask(
    trainer: Trainer,
    callbacks: Sequence[GradCAMCallback],
    question: Callable[[GradCAMCallback, Trainer, LightningModule], list[T]],
    model: LightningModule,
    dataloaders: Any = None,
    *,
    datamodule: LightningDataModule | None = None,
    **options: Any,
) -> list[T]:
    """Ask callbacks something about a model where it and its data are as in a validation.

    Args:
        trainer: Is not fit for anything else afterwards.
        callbacks: Take the place of the trainer's own.
        question: Is put to each, once it has its probes.
        model: The model.
        dataloaders: The validation data, if it is not in `datamodule`.
        datamodule: The data.
        options: Others of `Trainer.validate`, such as `ckpt_path`.

    Raises:
        ValueError: There is no callback, no validation data, or more than one process.
    """
    if not callbacks:
        raise BadInputError(
            "There is no GradCAMCallback under `trainer.callbacks` in this configuration. Add one: "
            "`- class_path: gradcam_callback.GradCAMCallback`."
        )
    if trainer.world_size > 1:
        raise BadInputError(
            f"The trainer wants {trainer.world_size} processes, and the doctor examines in one. Give it one device: "
            "`--trainer.devices 1` for a LightningCLI, `devices=1` in Python."
        )
    examination = _Examination(callbacks, question)
    trainer.callbacks = [examination]  # type: ignore[attr-defined]
    trainer.loggers = [DummyLogger()]  # hooks of the model may write to it
    trainer.validate_loop.inference_mode = False  # a validation in `fit` is under no_grad
    with _validation_of_fit(model, datamodule), suppress(_Examined):
        trainer.validate(model, dataloaders, datamodule=datamodule, verbose=False, **options)
    if examination.answers is None:
        raise BadInputError(
            "There is no batch of validation data to take probes from. Give the trainer validation data, and a "
            "`limit_val_batches` above 0."
        )
    return examination.answers


@contextmanager
def _validation_of_fit(model: LightningModule, datamodule: LightningDataModule | None) -> Iterator[None]:
    """Have a validation prepare what `fit` would, run no step of the model's, and ask for no callback."""
    with ExitStack() as stack:
        # What a program calls is `fit`, and many a data module prepares its validation data for that stage alone.
        for part in (model, datamodule) if datamodule is not None else (model,):
            stack.enter_context(_replaced(part, "setup", _set_up_for_fit(part.setup)))
        stack.enter_context(_replaced(model, "validation_step", lambda *_, **__: None))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # of callbacks in the checkpoint
        yield


class _Examined(Exception):  # noqa: N818  # no error
    """Ends the validation: all is known."""


class _Examination(Callback, Generic[T]):
    """Hands the batches of a validation on to the callbacks until they have their probes; then they are asked."""

    def __init__(
        self,
        callbacks: Sequence[GradCAMCallback],
        question: Callable[[GradCAMCallback, Trainer, LightningModule], list[T]],
    ) -> None:
        self.answers: list[T] | None = None
        self._callbacks = callbacks
        self._question = question

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in self._callbacks:
            callback.on_validation_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for callback in self._callbacks:
            callback.on_validation_batch_start(trainer, pl_module, *args)
        if not any(callback.wants_batches(trainer) for callback in self._callbacks):
            self._ask(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ask(trainer, pl_module)

    def _ask(self, trainer: Trainer, pl_module: LightningModule) -> NoReturn:
        self.answers = []
        for callback in self._callbacks:
            self.answers += self._question(callback, trainer, pl_module)
        raise _Examined


def _diagnose(callback: GradCAMCallback, trainer: Trainer, pl_module: LightningModule) -> list[Report]:
    try:
        with progress_bar("following the gradient"):
            found = callback.diagnose(trainer, pl_module)
    except ForwardFailedError as error:  # so there is no layer to choose, either
        found = [("every target", error.diagnosis)]
    return merge_targets(found)


def _list_layers(callback: GradCAMCallback, trainer: Trainer, pl_module: LightningModule) -> list[ListedLayer]:
    with progress_bar("looking at the layers"):
        return callback.list_layers(trainer, pl_module)


def _callbacks_of(trainer: Trainer) -> list[GradCAMCallback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, GradCAMCallback)]


def _set_up_for_fit(setup: Callable[..., None]) -> Callable[..., None]:
    return lambda stage: setup(stage="fit")


def _conclude(reports: Sequence[Report], as_json: bool) -> NoReturn:
    print_reports(reports, as_json=as_json)
    sys.exit(NULL if any(report.diagnosis.cause for report in reports) else HEALTHY)


def _run(command: Sequence[str]) -> None:
    """What `python` would do with these arguments."""
    is_module = command[0] == "-m"
    name, *arguments = command[1:] if is_module else command
    folder = os.getcwd() if is_module else str(Path(name).resolve().parent)
    if not is_module and not Path(name).is_file():
        raise BadInputError(f"There is no file {name}. Give a program, `-m` and a module, or `--config` and a file.")
    with _replaced(sys, "argv", [name, *arguments]), _replaced(sys, "path", [folder, *sys.path]):
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(Path(name).resolve()), run_name="__main__")


def _stdout_for_reports(as_json: bool) -> ExitStack:
    """Keeps out of JSON what a program or its data print."""
    stack = ExitStack()
    if as_json:
        stack.enter_context(redirect_stdout(sys.stderr))
    return stack


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for a while."""
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
