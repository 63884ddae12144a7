"""What is used of Lightning, from whichever of its two packages there is: `lightning` or `pytorch_lightning`.

Note [Two packages of Lightning]

Both hold the same code under other names, and a class of one is no class of the other. Both may be installed, and a
program uses one of them. The other one is not imported, because what Lightning logs goes under the name of the package
that was imported last. So the names here are of the package that the program has imported, or else of the first that is
installed. An object may be of the other package all the same: `isinstance` asks about `each` class of a name. And
GradCAMCallback is a Callback of every package that is imported by the time when the class is asked for, or a Trainer is
made: `inherit` makes it one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
T = TypeVar("T")


def imported() -> Iterator[ModuleType]:
    """The packages of Lightning that the program has imported."""
    modules = (sys.modules.get(name) for name in PACKAGES)
    # One that has no Trainer yet is being imported right now.
    return (module for module in modules if module is not None and hasattr(module, "Trainer"))


def installed() -> Iterator[ModuleType]:
    """Import the packages of Lightning that are installed, one after the other."""
    for name in PACKAGES:
        with suppress(ImportError):
            yield import_module(name)


PACKAGE = next((module.__name__ for module in chain(imported(), installed())), PACKAGES[0])

if TYPE_CHECKING or PACKAGES[0] == PACKAGE:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from lightning.pytorch.callbacks import RichProgressBar
    from lightning.pytorch.loggers import Logger, TensorBoardLogger
    from lightning.pytorch.loggers.logger import DummyLogger
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities.combined_loader import CombinedLoader
    from lightning.pytorch.utilities.model_helpers import is_overridden
else:
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.callbacks import RichProgressBar
    from pytorch_lightning.loggers import Logger, TensorBoardLogger
    from pytorch_lightning.loggers.logger import DummyLogger
    from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
    from pytorch_lightning.trainer.states import TrainerFn
    from pytorch_lightning.utilities.combined_loader import CombinedLoader
    from pytorch_lightning.utilities.model_helpers import is_overridden

__all__ = [
    "PACKAGE",
    "Callback",
    "CombinedLoader",
    "DDPStrategy",
    "DeepSpeedStrategy",
    "DummyLogger",
    "FSDPStrategy",
    "LightningDataModule",
    "LightningModule",
    "Logger",
    "RichProgressBar",
    "TensorBoardLogger",
    "Trainer",
    "TrainerFn",
    "each",
    "imported",
    "inherit",
    "installed",
    "overrides",
]


def each(kind: Callable[..., T]) -> tuple[type[T], ...]:
    """A class of Lightning, as every package has it that the program has imported; for `isinstance`."""
    home = kind.__module__.removeprefix(PACKAGE)
    modules = (sys.modules.get(f"{package.__name__}{home}") for package in imported())
    return tuple(getattr(module, kind.__name__) for module in modules if hasattr(module, kind.__name__))


def overrides(owner: object, hook: str, kind: type) -> bool:
    """Whether an object defines a hook itself, which a class of Lightning has for it."""
    return any(is_overridden(hook, owner, base) for base in each(kind) if isinstance(owner, base))


def inherit(kind: type[T]) -> type[T]:
    """A callback's class, now a Callback of every package that the program has imported."""
    kind.__bases__ += tuple(package.Callback for package in imported() if not issubclass(kind, package.Callback))
    return kind
