"""A model to run in place of the one that trains; a stand-in around `isolation`, until the replica is merged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from gradcam_callback.engine import isolation

T = TypeVar("T")


@dataclass(frozen=True)
class ReplicaOptions:
    """How a replica is made."""

    substitutes: tuple[tuple[Any, Any], ...] = ()
    shared_types: tuple[type, ...] = ()
    prepare: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True)
class Replica:
    """What runs in place of the model that trains."""

    model: nn.Module

    def modified_weights(self) -> tuple[str, ...]:
        """The dotted names of the weights that a pass has written to in place."""
        return ()


@contextmanager
def isolated(model: nn.Module, options: ReplicaOptions = ReplicaOptions()) -> Iterator[Replica]:
    """A replica of the model, to run with gradients on."""
    with isolation.isolated(model):
        yield Replica(model)


def copy_structure(value: T) -> T:
    """A deep copy, or the value itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # locks, open files, generators: whatever it holds
        return value


def run_in_replica(model: nn.Module, job: Callable[[Replica], T], options: ReplicaOptions = ReplicaOptions()) -> T:
    """Do a job with a replica."""
    with isolated(model, options) as replica:
        return job(replica)
