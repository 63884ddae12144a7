"""What a source of probes is asked for, and what it is told.

Note [Samples as they pass]

No data set is read here and no loader iterated: that could move a generator, open a file in the wrong process, or wait
for a slow disk. Probes are copies of samples in the batches that a validation reads for itself:

1. `source.start(context)` gives a collector, before the first batch.
2. `collector.add(batch, dataloader_idx)` takes copies from each batch, until `collector.is_complete`.
3. `collector.samples()`, after the last batch, is what this process has kept.
4. `collector.finish(samples)`, with the samples of all processes by rank, is the same `ProbeSet` in each of them.
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
        world_size: To how many processes the samples are dealt out: sample k that passes in this process has the
            position `k * world_size + rank`, as with a DistributedSampler. It is 1, and the rank is 0, where every
            process reads all samples.
        apply_batch_hooks: The batch-transfer hooks of a copy of the model; None if the model has none of its own.
        keeps_batch: Whether all that the batches hold of the samples is kept.
        given: Keys of what forward gets of a batch, as far as the options or its signature tell: images are among that.
        by_option: Whether the user has said what is `given`, with `inputs`.
        remark: Of a batch with a placeholder for the images, what to tell the user about the inputs; "" if nothing.
    """

    datasets: Sequence[Any] = ()
    positions: Sequence[int] | None = None
    rank: int = 0
    world_size: int = 1
    apply_batch_hooks: Callable[[Any], Any] | None = None
    keeps_batch: bool = False
    given: Sequence[int | str] = ()
    by_option: bool = False
    remark: Callable[[Any], str] | None = None


@dataclass(frozen=True, eq=False)  # tensors have no one answer to ==
class ProbeSample:
    """One sample that passed in a batch. It shares no memory with the batch, and can be pickled.

    Attributes:
        position: In the order in which validation reads its data, counted from 0 over all processes.
        image: `(C, H, W)` or `(H, W)`, as the batch has it.
        label: What the batch has for its label: a number, one a class, or one a pixel; or a mapping with boxes. None
            where it has nothing of the kind.
        notice: What to tell the user about its label and its inputs; "" if there is nothing to tell.
        row: All that the batch holds of it, as a batch of one; None where that was not asked for.
        is_listed: Whether the batch holds a list of images, whose sizes may differ.
    """

    position: int
    image: Tensor
    label: Any
    notice: str = ""
    row: Any = None
    is_listed: bool = False


class ProbeCollector(ABC):
    """Takes the probes of one validation out of its batches; see Note [Samples as they pass].

    As it stands, apart from `finish`, it is the collector of a source that needs no batch.
    """

    @property
    def is_complete(self) -> bool:
        """Whether no batch that is still to come can change the choice in this process."""
        return True

    def add(self, batch: Any, dataloader_idx: int) -> None:  # noqa: B027
        """Copy the samples that are wanted out of a batch that is ready for the model."""

    def samples(self) -> list[ProbeSample]:
        """What this process has kept, on the CPU.

        Raises:
            ValueError: There were no images in a batch, or its labels cannot be used as was asked for.
        """
        return []

    @abstractmethod
    def finish(self, samples: Sequence[ProbeSample]) -> ProbeSet:
        """Choose among the samples of all processes, by rank, and put them together.

        Returns:
            The probes, on the CPU; of length 0 if there was no sample, which is no error.

        Raises:
            ValueError: The images differ in shape or dtype.
        """

    def preview(self, batch: Any, dataloader_idx: int | None, count: int) -> ProbeSet | None:
        """Images for a dry run, before there was a validation.

        Args:
            batch: One that is ready for the model: of the sanity check, or of the training.
            dataloader_idx: Of a validation loader; None for a training batch, which may be of another form.
            count: How many images at most, of a batch.

        Returns:
            None if the batch is of another loader, or a training batch without images.

        Raises:
            ValueError: A validation batch has no images, or its labels cannot be used as was asked for; or a training
                batch has its only images in another entry than an option says.
        """
        return self.finish([])


class FixedCollector(ProbeCollector):
    """Of a source that has its probes already."""

    def __init__(self, probes: ProbeSet) -> None:
        self._probes = probes

    def finish(self, samples: Sequence[ProbeSample]) -> ProbeSet:
        """All probes; every process has them."""
        return self._probes


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
