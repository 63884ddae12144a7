"""Reading a run back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from gradcam_callback.recording.assembly import assemble, together
from gradcam_callback.recording.event_files import StoredRecord, find_event_files, read_records
from gradcam_callback.recording.payload import Room, UnreadableError
from gradcam_callback.recording.recording import Recording
from gradcam_callback.recording.records import Record, from_bytes


def read_run(path: str | os.PathLike[str]) -> Recording:
    """Read what was recorded of a run.

    Args:
        path: The run's folder, or its event file; a URL that fsspec knows will do.

    Returns:
        The recording of the training, or else of another stage. Those of further callbacks and stages are in `others`.
        What could not be read is said in `notes`.

    Raises:
        FileNotFoundError: There is nothing at this path, or no recording in it.
        ValueError: Several runs are below it; the message names them.
    """
    runs = read_runs(path)
    if len(runs) > 1:
        names = ", ".join(repr(run.name) for run in runs)
        raise ValueError(f"There are {len(runs)} recorded runs below {os.fspath(path)!r}: {names}. Give one of them.")
    return runs[0]


def read_runs(path: str | os.PathLike[str], *, below: bool = True) -> list[Recording]:
    """Read every run in a folder and the folders below it.

    Args:
        path: As of `read_run`.
        below: Whether to look into the folders below, too.

    Raises:
        FileNotFoundError: There is nothing at this path, or no recording in it.
    """
    root = os.fspath(path)
    runs, notes = [], list[str]()
    folders = find_event_files(root, below=below)
    names = _names(list(folders))
    for folder, files in folders.items():
        stored = [record for file in files for record in read_records(root, file)]
        records, problems = decode(stored)
        found = assemble(names[folder], records, problems)
        if found:
            runs.append(together(found))
        notes += problems
    if not runs:
        raise FileNotFoundError(
            f"There is no recording in {root!r}: no event file there holds a look of a GradCAMCallback."
            + "".join(f" {note}" for note in notes[:3])
        )
    return runs


def _names(folders: Sequence[str]) -> dict[str, str]:
    """The end of each path: its last two parts, or as many as tell it from the others."""
    count = 2
    while len({_end(folder, count) for folder in folders}) < len(folders):
        count += 1
    return {folder: _end(folder, count) for folder in folders}


def _end(folder: str, count: int) -> str:
    return "/".join(folder.split("/")[-count:])


def decode(stored: Iterable[StoredRecord]) -> tuple[list[Record], list[str]]:
    """The records that can be read, and a sentence about each that cannot."""
    records, problems, room = list[Record](), list[str](), Room()
    for one in stored:
        problem = one.problem
        if not problem:
            try:
                records.append(from_bytes(one.payload, room))
            except UnreadableError as error:
                problem = str(error)
        if problem:
            problems.append(f"A record could not be read ({one.place}): {problem}.")
    return records, problems
