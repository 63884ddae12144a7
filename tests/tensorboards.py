"""TensorBoard in a process of its own, as its user starts it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 90  # seconds


@dataclass
class TensorBoard:
    """One that runs."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=DEADLINE) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def runs(self) -> list[str]:
        """The runs that have a recording, once it was asked."""
        status, body = self.get("data/plugin/gradcam/runs")
        assert status == 200, body
        return [run["name"] for run in json.loads(body)["runs"]]

    def wait_for_runs(self, count: int = 1) -> list[str]:
        end = time.monotonic() + DEADLINE
        while len(found := self.runs()) < count:
            assert time.monotonic() < end, f"only {found}"
            time.sleep(0.1)
        return found


@contextmanager
def tensorboard(folder: Path, *options: str, **more: Any) -> Iterator[TensorBoard]:
    """Start TensorBoard on a folder, of this Python or another; port and address are its own choice."""
    python = more.get("python", sys.executable)
    logdir = more.get("logdir", ["--logdir", str(folder)])
    command = [python, "-m", "tensorboard.main", *logdir, "--port", "0", "--reload_interval", "1", *options]
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, text=True)
        try:
            yield TensorBoard(_address(process, log), process)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + DEADLINE
    while not (found := re.search(r"at (http://\S+) \(", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    return found[1]
