"""What a source of probes is asked for, and what it is told.

Note [Samples as they pass]

No data set is read here and no loader iterated: that could move a generator, open a file in the wrong process, or wait
for a slow disk. Probes are copies of samples in the batches that a validation reads for itself. So the order of calls is

1. `source.start(context)` gives a collector, before the first batch.
2. `collector.add(batch, dataloader_idx)` for each batch, until `collector.is_complete`.
3. `collector.samples()` after the last batch, in every process.
4. `collector.finish(samples)` with the samples of all processes, in the order of their ranks. Each process gets the same
   `ProbeSet`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradcam_callback.probes.probe_set import ProbeSet


@dataclass(frozen=True)
class CaptureContext:
    """What a source may know of the run that its probes are for.

    Attributes:
        datasets: The data set of each validation loader, None where a loader has none. They are asked for attributes
            (class names, transforms) and for their length, never for a sample.
        positions: Those of an earlier run that is resumed: the same positions are taken again.
        rank: This process's number.
        world_size: How many processes the samples are dealt out to: sample k that passes in this process has the
            position `k * world_size + rank`, as a DistributedSampler deals them out. It is 1, and rank 0, for a loader
            that gives every sample to every process.
        apply_batch_hooks: The batch-transfer hooks of a copy of the model; None if the model has none of its own.
    """

    datasets: Sequence[Any] = ()
    positions: Sequence[int] | None = None
    rank: int = 0
    world_size: int = 1
    apply_batch_hooks: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class ProbeSample:
    """One sample that passed in a batch. It can be pickled, and shares no memory with the batch.

    Attributes:
        position: In the order in which validation reads its data, counted over all processes.
        image: `(C, H, W)` or `(H, W)`, on the CPU.
        label: What the batch has for its label, on the CPU: a number, or one a class; None where it has nothing that
            could be one.
        notices: What was noticed about its batch.
    """

    position: int
    image: Tensor
    label: Tensor | None
    notices: tuple[str, ...] = ()


class ProbeCollector(ABC):
    """Takes the probes of one validation out of its batches; see Note [Samples as they pass]."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether no batch that is still to come can change the choice in this process."""

    @abstractmethod
    def add(self, batch: Any, dataloader_idx: int) -> None:
        """Copy the samples that are wanted, if there are any, out of a batch that is ready for the model."""

    @abstractmethod
    def samples(self) -> list[ProbeSample]:
        """What this process has kept, copied to the CPU.

        Raises:
            ValueError: There were no images in a batch, or its labels cannot be used as was asked for.
        """

    @abstractmethod
    def finish(self, samples: Sequence[ProbeSample]) -> ProbeSet:
        """Choose among the samples of all processes and put them together.

        Returns:
            The probes; of length 0 if there was no sample, which is no error.

        Raises:
            ValueError: The images differ in size or dtype.
        """

    @abstractmethod
    def preview(self, batch: Any, dataloader_idx: int | None, count: int) -> ProbeSet | None:
        """Images for a dry run, before there was a validation.

        Args:
            batch: One that is ready for the model: of the sanity check, or of the training.
            dataloader_idx: Of a validation loader; None for a training batch, which may be of another form.
            count: How many images at most.

        Returns:
            None if the batch is not of the loader that probes come from, or is a training batch without images.

        Raises:
            ValueError: A validation batch has no images, or labels that cannot be used as was asked for.
        """


class ProbeSource(ABC):
    """Where the probes come from. Subclass it to bring your own.

    The easiest way to write `start` is to gather the images and end with
    `return TensorProbes(images, labels, names).start(context)`.
    """

    @abstractmethod
    def start(self, context: CaptureContext) -> ProbeCollector:
        """Begin to collect. Called before the first batch of a validation; must move no random generator.

        Raises:
            ValueError: There is nothing to take, or it is not as the configuration says.
        """

    def describe(self) -> str:
        """The configuration as a text that stays the same from run to run, to notice when it was changed."""
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(self).__name__}({values})")


class FixedCollector(ProbeCollector):
    """For a source that has its images already: it is complete from the start and asks for no batch."""

    def __init__(self, probes: ProbeSet) -> None:
        self._probes = probes

    is_complete = True

    def add(self, batch: Any, dataloader_idx: int) -> None:
        """Take nothing."""

    def samples(self) -> list[ProbeSample]:
        """None: every process has the images."""
        return []

    def finish(self, samples: Sequence[ProbeSample]) -> ProbeSet:
        """Hand out the images."""
        return self._probes

    def preview(self, batch: Any, dataloader_idx: int | None, count: int) -> ProbeSet | None:
        """All images: they are known before the first batch."""
        return self._probes
