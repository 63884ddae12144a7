"""Reports as files, on the disk or on whatever fsspec knows: panels as pictures, alerts as lines of JSON."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import time
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from gradcam_callback.recording.summaries import summary_of
from gradcam_callback.reporting.report import Report
from gradcam_callback.reporting.sinks.disk_space import ensure_space
from gradcam_callback.reporting.sinks.sink import SinkContext

_LONGEST_NAME = 120  # characters; file systems take 255 bytes
_RESERVED_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # by Windows


class PanelFiles:
    """Writes panels as PNG or JPEG files: `<folder>/gradcam/<layer>/step=00000120.png`.

    One of the same step is replaced.

    Args:
        folder: A path, or a URL that fsspec knows; made when the first panel comes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(folder)
        self._folder = _Folder(folder)
        self._tags: dict[str, str] = {}

    @classmethod
    def of(cls, context: SinkContext) -> PanelFiles:
        """The files of a run, in its folder."""
        return cls(context.folder)

    def write(self, report: Report) -> None:
        """Write the panels.

        Raises:
            OSError: They cannot be written.
        """
        for tag, image in report.images.items():
            self._folder.write(f"{self._directory(tag)}/step={report.step:08d}.{image.suffix}", image.content)

    def flush(self) -> None:
        """Have nothing to do: each file is closed once it is written."""

    def _directory(self, tag: str) -> str:
        """Where a tag's files go; two tags that differ in upper and lower case alone are told apart, too."""
        path = file_path(tag)
        if self._tags.setdefault(path.casefold(), tag) != tag:
            path += f"~{_digest(tag)}"
        return path


class AlertFile:
    """Appends alerts to `<folder>/gradcam/alerts.jsonl`, one a line.

    Args:
        folder: A path, or a URL that fsspec knows; made when the first alert comes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(folder)
        self._folder = _Folder(folder)

    def write(self, report: Report) -> None:
        """Append the alerts.

        Raises:
            OSError: They cannot be written.
        """
        if report.alerts:
            lines = [json.dumps(alert.as_record(), ensure_ascii=False) + "\n" for alert in report.alerts]
            self._folder.append("gradcam/alerts.jsonl", "".join(lines).encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Have nothing to do: the file is closed after each report."""


class RecordingFile:
    """Writes the recording into an event file of its own, where no logger writes one.

    Args:
        folder: The run's, a path or a URL that fsspec knows; made when the first record comes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(folder)
        self._folder = _Folder(folder)
        # As TensorBoard's own writer names its files; a second run in the folder gets another one.
        self._file = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}.gradcam"
        self._is_begun = False

    def write(self, report: Report) -> None:
        """Append the records.

        Raises:
            OSError: They cannot be written.
        """
        events = [
            Event(wall_time=time.time(), step=report.step, summary=summary_of(record.tag, record.record))
            for record in report.records
        ]
        if not events:
            return
        if not self._is_begun:
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
        buffer = io.BytesIO()
        frames = RecordWriter(buffer)
        for event in events:
            frames.write(event.SerializeToString())
        self._folder.append(self._file, buffer.getvalue())
        self._is_begun = True

    def flush(self) -> None:
        """Have nothing to do: the file is closed after each report."""


class _Folder:
    """A folder on any file system. Paths in it have slashes."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._system, self._root = url_to_fs(os.fspath(folder))
        self._is_local = isinstance(self._system, LocalFileSystem)

    def write(self, path: str, content: bytes) -> None:
        """Write a file; of one that does not fit, nothing is left."""
        whole = self._prepared(path, len(content))
        try:
            self._system.pipe_file(whole, content)
        except Exception:
            if self._system.exists(whole):
                self._system.rm_file(whole)
            raise

    def append(self, path: str, content: bytes) -> None:
        """Append to a file, or write it anew where the file system cannot append."""
        whole = self._prepared(path, len(content))
        if self._is_local:
            _append(whole, content)
        else:
            before = self._system.cat_file(whole) if self._system.exists(whole) else b""
            self._system.pipe_file(whole, before + content)

    def _prepared(self, path: str, size: int) -> str:
        whole = f"{self._root.rstrip('/')}/{path}"
        parent = whole.rpartition("/")[0]
        self._system.makedirs(parent, exist_ok=True)
        if self._is_local:
            ensure_space(parent, size)
        return whole


def _append(path: str, content: bytes) -> None:
    """Append all of it or nothing: behind half a record nobody could find the next one."""
    with open(path, "ab", buffering=0) as file:
        end, left = file.tell(), memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except BaseException:
            with suppress(OSError):  # the first error tells what is wrong
                file.truncate(end)
            raise


def file_path(tag: str) -> str:
    """A tag as a relative path, the same for no two tags, and possible on every system.

    Its slashes become folders. Whatever is not a plain letter, a digit, or one of `_-.#=` is written as in a URL; and
    so are dots that would lead out of the folder, and names that Windows keeps for itself.
    """
    return "/".join(map(_file_name, tag.split("/")))


def _file_name(part: str) -> str:
    name = quote(part, safe="#=", errors="surrogatepass").replace("~", "%7E")
    if name.endswith("."):
        name = f"{name[:-1]}%2E"
    if _RESERVED_NAMES.fullmatch(name) or not name:
        name = f"%{ord(name[0]):02X}{name[1:]}" if name else "%"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 20]}~{_digest(part)}"
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def run_folder(directory: str | os.PathLike[str], *run: Any) -> str:
    """Choose a folder for the files of one run below a directory that several runs share, and make it.

    Args:
        directory: A path, or a URL that fsspec knows.
        run: What tells the run from others, e.g. a logger's name and version. Without it the next free number of
            `gradcam_logs/version_0`, `gradcam_logs/version_1`, ... is taken.

    Returns:
        The path or URL of the folder.

    Raises:
        OSError: It cannot be made.
    """
    protocol, separator, path = os.fspath(directory).rpartition("://")
    base = protocol + separator + path.rstrip("/")
    system, _ = url_to_fs(base or "/")
    given = [_file_name(str(part)) for part in run if part not in (None, "")]
    if given:
        folder = "/".join([base, *given])
        system.makedirs(folder, exist_ok=True)
        return folder
    shared = f"{base}/gradcam_logs"
    system.makedirs(shared, exist_ok=True)
    taken = [re.fullmatch(r"version_(\d+)", path.rstrip("/").rpartition("/")[2]) for path in _names(system, shared)]
    number = max((int(found[1]) + 1 for found in taken if found), default=0)
    while True:
        try:
            system.makedirs(f"{shared}/version_{number}", exist_ok=False)
            return f"{shared}/version_{number}"
        except FileExistsError:  # another run was faster
            number += 1


def _names(system: Any, folder: str) -> list[str]:
    if not system.exists(folder):  # an object store makes no empty folders
        return []
    return [path.replace("\\", "/") for path in system.ls(folder, detail=False)]
