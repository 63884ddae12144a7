"""The processes of a run: what each does of a probe pass, and how all come to one result.

Note [Everyone arrives]

A collective call that one process does not arrive at is a run that hangs. So what can fail is done before the call, its
error is sent like a result, and then all processes raise the same. And what is decided between two calls is decided on
what all processes have in common.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from gradcam_callback.errors import BadInputError, ForwardFailedError

T = TypeVar("T")


class PartFailedError(RuntimeError):
    """A process could not do its part; the message says which and why."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the run.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        sharded: Whether every process has to take part in each forward pass, because each holds only a shard of the
            weights. Then all do the same, with all samples. Otherwise each holds all weights, and takes a share.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    def share(self, count: int) -> slice:
        """Which of so many samples are this process's part: neighbours, and none where there are too few."""
        if self.sharded:
            return slice(0, count)
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, job: Callable[[], T]) -> list[T]:
        """Have every process do its part; see Note [Everyone arrives].

        Returns:
            What each gave, by rank; the same for all. Of a sharded model all give the same, and it is there once.

        Raises:
            PartFailedError: One of them failed. A BadInputError or a ForwardFailedError is raised as it is.
        """
        return [job()] if self.sharded else self.exchange(job)

    def exchange(self, job: Callable[[], T]) -> list[T]:
        """Have every process do something that runs no model; see Note [Everyone arrives].

        Returns:
            What each gave, by rank; the same for all.

        Raises:
            PartFailedError: One of them failed. A BadInputError or a ForwardFailedError is raised as it is.
        """
        if self.size == 1:
            return [job()]
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, _attempt(job))
        return [self._value(outcome, rank) for rank, outcome in enumerate(outcomes)]

    def from_rank_zero(self, job: Callable[[], T]) -> T:
        """Have the first process do something that runs no model, and tell all; see Note [Everyone arrives].

        Raises:
            PartFailedError: It failed. A BadInputError or a ForwardFailedError is raised as it is.
        """
        if self.size == 1:
            return job()
        outcome = [_attempt(job) if self.rank == 0 else None]
        dist.broadcast_object_list(outcome, src=0)
        value: T = self._value(outcome[0], 0)
        return value

    def run_consistently(self, job: Callable[[], T]) -> T:
        """Have something done that runs the model, the same for all: by the first process, or by all of them.

        Raises:
            PartFailedError: It failed. A BadInputError or a ForwardFailedError is raised as it is.
        """
        return job() if self.sharded else self.from_rank_zero(job)

    def _value(self, outcome: Any, rank: int) -> Any:
        value, error = outcome
        if error is None:
            return value
        if isinstance(error, (BadInputError, ForwardFailedError)):
            raise error
        raise PartFailedError(f"on rank {rank} of {self.size}, {error}")


def _attempt(job: Callable[[], T]) -> tuple[T | None, Exception | str | None]:
    """The job's result, or its error: as it is where it carries its own words, and in words where it may not travel."""
    try:
        value = job()
        pickle.dumps(value)
        return value, None
    except (BadInputError, ForwardFailedError) as error:
        return None, error
    except Exception as error:  # whatever a part may raise: the others wait
        return None, f"{type(error).__name__}: {error}"
