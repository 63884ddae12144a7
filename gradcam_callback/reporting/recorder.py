"""What is written of one run into its recording: numbered records, and the probe images once."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from gradcam_callback import pages
from gradcam_callback.causes import Cause
from gradcam_callback.recording.records import AlertRecords, Look, Origin, ProbePictures, Record
from gradcam_callback.recording.summaries import RecordTags
from gradcam_callback.reporting.alerts import Alert, code_around
from gradcam_callback.reporting.tags import Tags


@dataclass(frozen=True, eq=False)
class PendingRecord:
    """A record that is to be made behind the training loop, where pictures are encoded and code is quoted.

    Attributes:
        tag: Where it is written.
        make: Makes it.
        on_failure: Called where it could not be made or written.
    """

    tag: str
    make: Callable[[], Record]
    on_failure: Callable[[], None] = lambda: None

    @cached_property
    def record(self) -> Record:
        """The record, made once."""
        return self.make()


@dataclass(frozen=True)
class SeenProbes:
    """A look, and what makes pictures of the probes that it was at.

    Attributes:
        look: Without its alerts.
        encode_probes: Makes the record of the probes, behind the training loop.
    """

    look: Look
    encode_probes: Callable[[Origin], ProbePictures]


class Recorder:
    """Gives each record its number and its tag.

    Args:
        tags: Those of the callback in this stage.
        record_tags: Which tags were given at which step; they outlive a run.
    """

    def __init__(self, tags: Tags, record_tags: RecordTags) -> None:
        self._tags = tags
        self._record_tags = record_tags
        self._session = time.time(), secrets.token_hex(4)
        self._number = 0
        self._written: set[str] = set()  # the probes whose images are written

    def records(
        self, seen: SeenProbes | None, alerts: Sequence[Alert], *, step: int, epoch: int
    ) -> Iterator[PendingRecord]:
        """The records of one report.

        Args:
            seen: The look of this step, if there is one.
            alerts: Those that are new.
            step: `trainer.global_step`.
            epoch: `trainer.current_epoch`.
        """
        told = tuple(alerts)
        if seen is not None:
            look, encode_probes = seen.look, seen.encode_probes
            if look.probe_set not in self._written:
                self._written.add(look.probe_set)
                retry = partial(self._written.discard, look.probe_set)  # at the next look
                yield replace(self._pending(ProbePictures.KIND, encode_probes, step, epoch), on_failure=retry)

            def make(origin: Origin) -> Look:
                return replace(look, origin=origin, alerts=_records_of(told))

            yield self._pending(Look.KIND, make, step, epoch)
        elif alerts:
            yield self._pending(AlertRecords.KIND, lambda origin: AlertRecords(origin, _records_of(told)), step, epoch)

    def _pending(self, kind: str, make: Callable[[Origin], Record], step: int, epoch: int) -> PendingRecord:
        tags, number = self._tags, self._number
        self._number += 1
        origin = Origin(tags.stage, tags.position, self._session, number, epoch, step, time.time())
        return PendingRecord(self._record_tags.tag(tags.recording, kind, step), partial(make, origin))


def _records_of(alerts: Sequence[Alert]) -> tuple[Mapping[str, Any], ...]:
    return tuple(map(_record_of, alerts))


def _record_of(alert: Alert) -> dict[str, Any]:
    """An alert with the code around its line, and where to read more."""
    record = alert.as_record()
    record["url"] = pages.url(alert.cause.value) if isinstance(alert.cause, Cause) else ""
    if alert.location is not None:
        record["location"]["around"] = list(code_around(alert.location))
    return record
