"""Back door: what is written, and where. The only room that knows TensorBoard's records and the file system.

Encoding a panel takes tens of milliseconds; none of them are the training loop's. Jobs run behind it, in their order,
in one thread. Scalars are not written here: they go through Lightning's own logging, so that every logger and every
other callback gets them.
"""

from __future__ import annotations

import json
import queue
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Panels that may wait. A disk that is slower than the training for long makes the loop wait instead of filling memory.
_WAITING_JOBS = 8


class Sink(Protocol):
    """Where pictures and texts go. Its methods are called from one thread, in order."""

    def image(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write a picture: `(height, width, 3)` uint8."""

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text."""

    def flush(self) -> None:
        """Make sure that what was written is on the disk."""


class TensorBoardSink:
    """Writes into the event file of a TensorBoardLogger.

    Args:
        experiment: The logger's own `SummaryWriter`. A writer of our own would open a second event file in the same
            folder, and TensorBoard would stop showing one of the two live.
    """

    def __init__(self, experiment: Any) -> None:
        self._experiment = experiment
        # A logger that was closed after an earlier run opens a new file when it is next used. That must not happen in
        # the writer's thread, where it would race with the training loop.
        experiment._get_file_writer()

    def image(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write a picture for the images tab."""
        self._experiment.add_image(tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text for the text tab."""
        # `add_text` would append "/text_summary" to the tag.
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._experiment._get_file_writer().add_summary(text_pb(tag, markdown), step)

    def flush(self) -> None:
        """Make sure that what was written is on the disk."""
        self._experiment.flush()


class FolderSink:
    """Writes panels as PNG files, where there is no TensorBoardLogger: `<folder>/<tag>/step=00000120.png`.

    Args:
        folder: Where to write; made when the first panel comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def image(self, tag: str, pixels: Pixels, step: int) -> None:
        """Write a picture as a PNG file; one of the same step is replaced."""
        from PIL import Image

        path = self._folder / re.sub(r"[^\w./#-]", "_", tag) / f"step={step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write nothing: the alerts are in `alerts.jsonl`."""

    def flush(self) -> None:
        """Have nothing to do: each file is closed once it is written."""


class BackgroundWriter:
    """Runs a sink behind the training loop, in order.

    Args:
        sink: Where things go.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING_JOBS)
        self._outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def image(self, tag: str, draw: Callable[[], Pixels], step: int) -> None:
        """Draw and write a picture, soon."""
        self._submit(lambda: self._sink.image(tag, draw(), step))

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Write a text, soon."""
        self._submit(lambda: self._sink.text(tag, markdown, step))

    def flush(self) -> None:
        """Wait until everything so far is on the disk."""
        if self._thread is not None:
            self._jobs.put(self._sink.flush)
            self._jobs.join()

    def close(self) -> None:
        """Flush, and end the thread. A later job starts a new one."""
        self.flush()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def take_outcome(self) -> tuple[int, list[BaseException]]:
        """How many jobs were done since this was last asked, and what went wrong with others."""
        outcomes = []
        while not self._outcomes.empty():
            outcomes.append(self._outcomes.get())
        return outcomes.count(None), [failure for failure in outcomes if failure is not None]

    def _submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            # A daemon, so that a killed run does not hang on its pictures; `close` is called at every other end.
            thread = threading.Thread(target=self._work, name="gradcam-writer", daemon=True)
            thread.start()
            self._thread = thread  # not before it runs: one that could not be started would be waited for, for ever
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
                if job != self._sink.flush:
                    self._outcomes.put(None)
            except BaseException as failure:  # a full disk, a closed writer: the training must not notice
                self._outcomes.put(failure)
            finally:
                self._jobs.task_done()
        self._jobs.task_done()


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects to a file, one a line.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
