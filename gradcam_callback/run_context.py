"""What is asked of the loop that trains a model, whether a Trainer runs it or the user's own code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from gradcam_callback.engine.replica import ReplicaOptions
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.probes import CaptureContext
from gradcam_callback.reporting.sinks.registry import ChosenSink, OpenedSinks


class RunContext(ABC):
    """What a session may know of a run, and what it may ask of it.

    It holds the model, so it is handed from call to call, and no part of a session keeps it.

    Attributes:
        model: What is explained.
    """

    model: nn.Module

    @property
    @abstractmethod
    def step(self) -> int:
        """How many optimizer steps there were."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """The epoch, counted from 0."""

    @property
    @abstractmethod
    def stage(self) -> str:
        """What is done with the model: "fit", "validate" or "test"."""

    @property
    @abstractmethod
    def processes(self) -> ProcessGroup:
        """The processes of the run, and whether they have to go through a forward pass together."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def moment(self) -> str:
        """Where the run stands, for the heading of a panel."""
        return f"epoch {self.epoch} · step {self.step}"

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes."""
        return self.processes.rank == 0

    @property
    def unsupported_reason(self) -> str | None:
        """Why there can be no maps of a model that is spread like this; None where there can be."""
        return None

    @property
    def has_validation(self) -> bool:
        """Whether a training will come to look at the probes at all."""
        return True

    @property
    def shows_progress(self) -> bool:
        """Whether this process may show a progress bar."""
        return self.is_global_zero

    def forward_context(self) -> AbstractContextManager[Any]:
        """What the model's forward runs in: its precision."""
        return nullcontext()

    def convert_input(self, images: Any) -> Any:
        """Images in the precision in which the model gets them."""
        return images

    @abstractmethod
    def replica_options(self, method: str) -> ReplicaOptions:
        """How a replica of the model is made, of which a method is called."""

    @abstractmethod
    def capture_context(self, positions: Sequence[int] | None, **options: Any) -> CaptureContext:
        """What a source of probes may know.

        Args:
            positions: Those of an earlier run that is resumed.
            options: What the model needs of the batches.
        """

    @abstractmethod
    def open_sinks(self, chosen: Sequence[ChosenSink]) -> OpenedSinks:
        """Where panels and alerts go; nowhere where this process has nothing to write. Every process has to call it.

        Args:
            chosen: Sinks that the options ask for.
        """

    @abstractmethod
    def log_scalars(self, scalars: dict[str, float]) -> list[Exception]:
        """Log scalars wherever the run logs its own; what went wrong."""

    def show_scalars(self, scalars: dict[str, float]) -> None:  # noqa: B027
        """Show scalars to whoever watches them in this process, and log them nowhere."""
