"""Reports are written behind the training loop, in their order, in one thread.

Composing and encoding a panel takes tenths of a second; none of them are the training loop's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.sink import Sink

# Reports that may wait. A disk that is slower than the training for long makes the loop wait instead of filling memory.
_WAITING_REPORTS = 2

# Pixels of tiles that are composed and encoded in a second, by a slow computer.
_PIXELS_A_SECOND = 3e6


@dataclass(frozen=True)
class WritingFailure:
    """What could not be written.

    Attributes:
        sink: The name of the sink.
        tag: Of the panel or of the alerts; "flush" where it is not known which.
        error: What it came to.
    """

    sink: str
    tag: str
    error: BaseException


class BackgroundWriter:
    """Hands reports to several sinks. One that fails does not keep the others from writing.

    Args:
        sinks: Where reports go.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._reports: queue.Queue[Report | None] = queue.Queue(_WAITING_REPORTS)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._failures: dict[tuple[int, str], WritingFailure] = {}
        self._has_news = False
        self._waiting_pixels = 0

    @property
    def backlog(self) -> float:
        """Roughly how many seconds the reports that wait will take."""
        return self._waiting_pixels / _PIXELS_A_SECOND

    @property
    def is_full(self) -> bool:
        """Whether the next report has to wait before it can wait."""
        return self._reports.full()

    def submit(self, report: Report) -> None:
        """Write a report, soon."""
        if self._thread is None:
            # A daemon, so that a killed run does not hang on its panels; `close` is called at every other end.
            thread = threading.Thread(target=self._work, name="gradcam-writer", daemon=True)
            thread.start()
            self._thread = thread  # not before it runs: one that could not be started would be waited for, for ever
        with self._lock:
            self._waiting_pixels += report.pixels
        self._reports.put(report)

    def close(self) -> None:
        """Wait until everything is on the disk, and end the thread. A later report starts a new one."""
        if self._thread is not None:
            self._reports.put(None)
            self._thread.join()
            self._thread = None

    def take_failures(self) -> list[WritingFailure] | None:
        """What cannot be written now, by the last attempt; None where nothing was tried since this was last asked."""
        with self._lock:
            has_news, self._has_news = self._has_news, False
            return list(self._failures.values()) if has_news else None

    def _work(self) -> None:
        while True:
            report = self._reports.get()
            if report is None:
                break
            self._write(report)
            with self._lock:
                self._waiting_pixels -= report.pixels
            del report  # its tiles are not kept while the next one is waited for
        for number in range(len(self._sinks)):
            self._attempt(number, "flush", None)

    def _write(self, report: Report) -> None:
        for tag, part in report.split():
            for number in range(len(self._sinks)):
                self._attempt(number, tag, part)

    def _attempt(self, number: int, tag: str, report: Report | None) -> None:
        sink = self._sinks[number]
        try:
            sink.flush() if report is None else sink.write(report)
        except BaseException as failure:  # a full disk, a closed writer, an exit: the training must not notice
            self._note(number, tag, failure)
            for record in () if report is None else report.records:
                record.on_failure()
        else:
            if report is not None:  # that nothing had to be flushed proves nothing
                self._note(number, tag, None)

    def _note(self, number: int, tag: str, failure: BaseException | None) -> None:
        with self._lock:
            self._failures.pop((number, tag), None)
            if failure is not None:
                self._failures[number, tag] = WritingFailure(self._sinks[number].name, tag, failure)
            self._has_news = True
