"""Which sink belongs to which logger, by the name of the logger's class: no logger is imported that is not there."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from gradcam_callback.errors import BadInputError
from gradcam_callback.reporting.sinks.sink import Sink, SinkContext

ENTRY_POINTS = "gradcam_callback.sinks"  # the group in which other packages name theirs

SinkFactory = Callable[[SinkContext], Sink]

TENSORBOARD = "lightning.pytorch.loggers.tensorboard.TensorBoardLogger"
_OURS = "gradcam_callback.reporting.sinks"
_BUILT_IN = {
    TENSORBOARD: f"{_OURS}.tensorboard:TensorBoardSink.of",
    "lightning.pytorch.loggers.wandb.WandbLogger": f"{_OURS}.wandb:WandbSink",
    "lightning.pytorch.loggers.mlflow.MLFlowLogger": f"{_OURS}.mlflow:MLFlowSink",
    "lightning.pytorch.loggers.comet.CometLogger": f"{_OURS}.comet:CometSink",
}

_POSSIBLE = (
    "Possible: the dotted name of a class or a function that makes one of a `SinkContext`; `{class_path: NAME, "
    "init_args: {...}, logger: NAME}`; or from Python the class, the function, or an object with `name`, `write` and "
    "`flush`."
)


@dataclass(frozen=True)
class ChosenSink:
    """A sink that an option asks for.

    Attributes:
        text: What it is called, the same from run to run.
        make: Makes it.
        logger: The dotted name of the class of loggers that it is for; None for one for the whole run.
    """

    text: str
    make: SinkFactory = field(repr=False)
    logger: str | None = None


@dataclass
class OpenedSinks:
    """Where a run reports to.

    Attributes:
        sinks: In the order in which they are written to.
        failures: A sentence about each that could not be opened.
        notice: What the user has to know about where they are; empty where there is nothing to say.
    """

    sinks: list[Sink] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notice: str = ""

    def add(self, name: str, make: Callable[[], Sink]) -> None:
        """Open a sink, or note why it cannot be: the others go on."""
        try:
            sink = make()
            if not isinstance(sink, Sink):
                raise TypeError(f"{type(sink).__name__} is no sink: it needs `name`, `write` and `flush`")
        except Exception as error:
            self.fail(f"{name} gets no panels and alerts", error)
        else:
            self.sinks.append(sink)

    def fail(self, what: str, error: Exception) -> None:
        """Note what could not be opened."""
        self.failures.append(f"{what}: {type(error).__name__}: {str(error).rstrip('.')}.")


def is_logger(logger: Any, class_name: str) -> bool:
    """Whether an object is of a class, given by its dotted name in the package `lightning`."""
    return class_name in _class_names(type(logger))


def add_logger_sinks(opened: OpenedSinks, loggers: Sequence[Any], folder: str, chosen: Sequence[ChosenSink]) -> None:
    """Open the sinks of all loggers that have one.

    Args:
        opened: Where they are added.
        loggers: Those of the trainer.
        folder: As of `SinkContext`.
        chosen: By an option; those for the whole run are not opened.
    """
    makers = _makers({one.logger: one.make for one in chosen if one.logger is not None})
    for logger in loggers:
        # That for the class itself goes before those for its bases.
        make = next((makers[name] for name in _class_names(type(logger)) if name in makers), None)
        if make is not None:
            opened.add(type(logger).__name__, partial(make, SinkContext(logger, folder)))


def add_run_sinks(opened: OpenedSinks, folder: str, chosen: Sequence[ChosenSink]) -> None:
    """Open the sinks that were asked for, for no logger in particular; arguments as of `add_logger_sinks`."""
    for one in chosen:
        if one.logger is None:
            opened.add(one.text, partial(one.make, SinkContext(None, folder)))


def _makers(own: Mapping[str, SinkFactory]) -> dict[str, SinkFactory]:
    """What makes the sinks of loggers, by the dotted name of the logger's class; nothing is imported yet.

    An option goes before an entry point of another package, and that before what this package brings.
    """
    others = {point.name: partial(_load_and_make, point.load) for point in entry_points(group=ENTRY_POINTS)}
    built_in = {
        name: partial(_load_and_make, partial(pkgutil.resolve_name, place)) for name, place in _BUILT_IN.items()
    }
    return {**built_in, **others, **own}


def _load_and_make(load: Callable[[], SinkFactory], context: SinkContext) -> Sink:
    return load()(context)


def _class_names(kind: type) -> Iterator[str]:
    """The dotted names of a class and its bases; Lightning's are the same under both of its names."""
    for base in kind.__mro__:
        module = base.__module__
        package, _, rest = module.partition(".")
        yield f"{f'lightning.pytorch.{rest}' if package == 'pytorch_lightning' else module}.{base.__qualname__}"


def as_sinks(given: Any) -> tuple[ChosenSink, ...]:
    """What was given for the option `sinks`, checked.

    Raises:
        ValueError: Something is no sink, or could not be imported; the message says what is possible.
    """
    if given is None:
        return ()
    if not isinstance(given, (list, tuple)):
        raise BadInputError(f"`sinks` is a list; given: {given!r}. {_POSSIBLE}")
    return tuple(map(_chosen, given))


def _chosen(given: Any) -> ChosenSink:
    if isinstance(given, Mapping):
        if not set(given) <= {"class_path", "init_args", "logger"} or "class_path" not in given:
            raise BadInputError(f"An entry of `sinks` cannot be {dict(given)!r}. {_POSSIBLE}")
        one = _chosen(given["class_path"])
        arguments, logger = given.get("init_args") or {}, given.get("logger")
        text = f"{one.text}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
        kind = _imported(logger) if isinstance(logger, str) else logger
        if not (kind is None or isinstance(kind, type)):
            raise BadInputError(f"`logger` of a sink is a class or the dotted name of one; given: {logger!r}.")
        name = None if kind is None else next(_class_names(kind))
        return ChosenSink(text if arguments else one.text, partial(one.make, **arguments), name)
    if isinstance(given, str):
        return _chosen_object(_imported(given), given)
    return _chosen_object(given, getattr(given, "__qualname__", type(given).__qualname__))


def _chosen_object(given: Any, text: str) -> ChosenSink:
    if isinstance(given, Sink) and not isinstance(given, type):
        return ChosenSink(text, partial(_itself, given))
    if not callable(given):
        raise BadInputError(f"An entry of `sinks` cannot be {given!r}. {_POSSIBLE}")
    return ChosenSink(text, given)


def _itself(sink: Sink, context: SinkContext) -> Sink:
    return sink


def _imported(name: str) -> Any:
    try:
        return pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise BadInputError(f"{name!r} in `sinks` could not be imported: {type(error).__name__}: {error}.") from error
