"""The command `gradcam-callback report`: one HTML file of recorded runs, which needs no network and no TensorBoard."""

from __future__ import annotations

import argparse

from fsspec.core import url_to_fs

from gradcam_callback.progress import progress_bar
from gradcam_callback.recording.bundle import report_of
from gradcam_callback.recording.reading import read_runs

DESCRIPTION = """\
Write recorded runs into one HTML file. It is opened from disk, without a network and without TensorBoard: the maps of
every epoch, the alerts, and a comparison of the runs."""


def write_report(runs: list[str], output: str) -> str:
    """Write recorded runs into one HTML file.

    Args:
        runs: The runs' folders, or folders of several runs.
        output: The file's path, or a URL that fsspec knows.

    Returns:
        The path or URL of the file.

    Raises:
        FileNotFoundError: There is nothing at a path, or no recording in it.
        OSError: The file cannot be written.
    """
    recordings = []
    with progress_bar("reading the runs") as bar:
        for number, run in enumerate(runs):
            bar(number, len(runs))
            recordings += read_runs(run)
        bar.rename("writing the report")
        system, path = url_to_fs(output)
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, report_of(recordings).encode())
    return output


def run_command(args: list[str]) -> None:
    """Run the command.

    Args:
        args: What stands behind `report`.

    Raises:
        FileNotFoundError: As of `write_report`.
    """
    parser = argparse.ArgumentParser("gradcam-callback report", description=DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, or of several")
    parser.add_argument("-o", "--output", default="report.html", help="the file to write (default: %(default)s)")
    options = parser.parse_args(args)
    path = write_report(options.runs, options.output)
    system, file = url_to_fs(path)
    print(f"Written: {path} ({system.size(file) / 1e6:.1f} MB). Open it in a browser.")
