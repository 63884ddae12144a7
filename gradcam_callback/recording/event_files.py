"""Event files: their framing, and the records in them. A file may end in the middle of a record.

A frame is: the length of the data in eight bytes, a checksum of those, the data, a checksum of the data. The checksums
are not looked at: a record has its own, and in Python they would take longer than all the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from fsspec.core import url_to_fs
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from gradcam_callback.recording.summaries import PLUGIN, payload_of

_HEADER = struct.Struct("<QI")
_CHECKSUM = 4  # bytes
_MARK = b"tfevents"


@dataclass(frozen=True)
class StoredRecord:
    """Where a record was found, and its bytes.

    Attributes:
        place: The file and the record's position in it, in words.
        payload: Its bytes; empty where there are none.
        problem: Why there are none; empty otherwise.
    """

    place: str
    payload: bytes = b""
    problem: str = ""


def find_event_files(path: str, *, below: bool = True) -> dict[str, list[str]]:
    """The event files in a folder and the folders below it, by folder, each in the order in which they were made.

    Args:
        path: A folder or one event file; a URL that fsspec knows will do.
        below: Whether to look into the folders below, too.

    Raises:
        FileNotFoundError: There is nothing at this path.
    """
    system, root = url_to_fs(path)
    if not system.exists(root):
        raise FileNotFoundError(f"There is no {path!r}. Give the folder of a run, which holds its event file.")
    if system.isfile(root):
        return {root.rpartition("/")[0]: [root]}
    folders: dict[str, list[str]] = {}
    for file in sorted(system.find(root, maxdepth=None if below else 1)):
        folder, _, name = file.rpartition("/")
        if _MARK.decode() in name:
            folders.setdefault(folder, []).append(file)
    return folders


def read_records(path: str, file: str) -> Iterator[StoredRecord]:
    """The records of this package in an event file, in the order of writing.

    Args:
        path: Any path or URL on the same file system.
        file: The file, as `find_event_files` names it.
    """
    system, _ = url_to_fs(path)
    with system.open(file, "rb") as stream:
        for number, (data, problem) in enumerate(_frames(stream, system.size(file))):
            place = f"{file.rpartition('/')[2]}, event {number}"
            if problem:
                yield StoredRecord(place, problem=problem)
            elif PLUGIN.encode() in data:  # most events are of others, and need not be parsed
                yield from _records_in(data, place)


def _frames(stream: IO[bytes], size: int) -> Iterator[tuple[bytes, str]]:
    """The data of each frame, or what is wrong with the last one."""
    position = 0
    while position < size:
        header = stream.read(_HEADER.size)
        position += _HEADER.size
        if len(header) < _HEADER.size:
            yield b"", "it is cut short"
            return
        length, _ = _HEADER.unpack(header)
        if position + length + _CHECKSUM > size:  # asked before memory is taken
            yield b"", "it is cut short, or the file is damaged here, and what stands behind it cannot be found"
            return
        yield stream.read(length), ""
        stream.read(_CHECKSUM)
        position += length + _CHECKSUM


def _records_in(data: bytes, place: str) -> Iterator[StoredRecord]:
    try:
        event: Any = Event.FromString(data)
        values = [value for value in event.summary.value if value.metadata.plugin_data.plugin_name == PLUGIN]
        for value in values:
            yield StoredRecord(place, payload_of(value))
    except (DecodeError, ValueError) as error:
        yield StoredRecord(place, problem=f"it is damaged ({error})")
