"""Runs programs of this folder one after the other, each in a folder of its name: importing takes most of the time."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    start = Path.cwd()
    for name in sys.argv[1:]:
        folder = start / name
        folder.mkdir()
        os.chdir(folder)
        sys.argv = [name, *(["fit", "--trainer.max_epochs=2"] if name == "command_line" else [])]
        runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
