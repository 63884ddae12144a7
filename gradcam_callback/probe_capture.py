"""The probes of one run: captured from the batches that pass, the same in every process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from gradcam_callback.engine.batch_rows import map_tensors
from gradcam_callback.errors import BadInputError
from gradcam_callback.execution.processes import ProcessGroup
from gradcam_callback.probes import ProbeCollector, ProbeSample, ProbeSet, ProbeSource
from gradcam_callback.run_context import RunContext

# So many images at most are enough to see whether a gradient is there.
_PREVIEW = 16


class ProbeCapture:
    """Captures the probes of one run. What talks to other processes is called by all of them.

    Args:
        source: Where the probes come from.
        options: Of a model, what its forward needs of the batches: options of the context.

    Attributes:
        processes: Those of the run.
        is_of_validation: Whether the images of the dry run are of a validation batch.
    """

    def __init__(self, source: ProbeSource, options: Callable[[nn.Module], dict[str, Any]]) -> None:
        self.processes = ProcessGroup()
        self._source = source
        self._options = options
        self._collector: ProbeCollector | None = None
        self._preview: ProbeSet | BadInputError | None = None
        self.is_of_validation = False

    def start(self, run: RunContext, positions: Sequence[int] | None) -> None:
        """Begin to collect.

        Args:
            run: With the loaders in place.
            positions: Those of an earlier run that is resumed.
        """
        self._collector = self._source.start(run.capture_context(positions, **self._options(run.model)))

    def add(self, batch: Any, dataloader_idx: int) -> None:
        """Copy what is wanted out of a batch, if anything still is."""
        if self._collector is not None and self.wants_batches:
            self._collector.add(batch, dataloader_idx)

    def finish(self, run: RunContext) -> ProbeSet:
        """The probes, on the device; of length 0 where no sample passed.

        Raises:
            ValueError: What passed cannot be used.
        """
        collector, self._collector = self._collector, None
        assert collector is not None
        parts: list[list[ProbeSample]] = self.processes.exchange(collector.samples)
        probes = collector.finish([sample for part in parts for sample in part])
        return self._ready(run, probes)

    def drop(self) -> None:
        """Want no probes any more."""
        self._collector = self._preview = None

    @property
    def is_collecting(self) -> bool:
        """Whether a capture was begun and not finished."""
        return self._collector is not None

    @property
    def wants_batches(self) -> bool:
        """Whether a batch that is still to come may hold probes."""
        return self._collector is not None and not self._collector.is_complete

    def preview(self, run: RunContext, batch: Any, dataloader_idx: int | None) -> None:
        """Take images for a dry run out of the first batch that has some.

        What is wrong with a batch of a validation loader is said by `take_preview`, in all processes.

        Args:
            run: With the loaders in place.
            batch: Of the sanity check, or of the training.
            dataloader_idx: Of a validation loader; None for a training batch.
        """
        if self._preview is not None:
            return
        self.is_of_validation = dataloader_idx is not None
        try:
            collector = self._source.start(run.capture_context(None, **self._options(run.model)))
            self._preview = collector.preview(batch, dataloader_idx, _PREVIEW)
        except BadInputError as error:
            # What hangs on the error (frames, the error before it) would keep the batch alive.
            error.__context__ = error.__cause__ = None
            self._preview = error.with_traceback(None)

    def take_preview(self, run: RunContext) -> ProbeSet | None:
        """The images for the dry run, the same in every process; None where there are none.

        Raises:
            ValueError: The batch cannot be used.
        """
        found, self._preview = self._preview, None

        def usable() -> ProbeSet | None:
            if isinstance(found, BadInputError):
                raise found
            return found

        probes = self.processes.from_rank_zero(usable)
        return None if probes is None else self._ready(run, probes)

    def _ready(self, run: RunContext, probes: ProbeSet) -> ProbeSet:
        """The probes as the model takes them. There may be no space for them in one process alone."""
        moved: list[ProbeSet] = []
        device = run.device

        def move() -> None:
            images = run.convert_input(probes.images).to(device)
            batch = map_tensors(probes.batch, lambda tensor: tensor.to(device))
            moved.append(replace(probes, images=images, batch=batch))

        self.processes.exchange(move)
        return moved[0]
