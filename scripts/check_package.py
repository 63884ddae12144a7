"""Tries the built package as its user does: python scripts/check_package.py DIST.

The wheel in the folder DIST is installed alone into an empty environment, `.venv-package`, with what it declares to
need. There a program of a user's is type-checked and examined by the doctor, and trains; the tab serves its run, and a
report is written of it. At the end stands how large each installed distribution is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the tests use the same program and the same TensorBoard

from tensorboards import tensorboard
from test_package import contents_of_sdist, contents_of_wheel, type_check

PROGRAM = ROOT / "tests" / "user_program.py"
ENVIRONMENT = ROOT / ".venv-package"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
SHOWN = 12  # of the installed distributions, the largest


def main(dist: Path) -> None:
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    print(f"{wheel.name}: {len(contents_of_wheel(wheel))} files, {megabytes(wheel.stat().st_size)}")
    print(f"{sdist.name}: {len(contents_of_sdist(sdist))} files, {megabytes(sdist.stat().st_size)}")
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    run(BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    with tempfile.TemporaryDirectory() as folder:
        try_out(Path(folder))
    print_sizes()


def try_out(folder: Path) -> None:
    """Everything that a user does, in an empty folder."""
    program = Path(shutil.copy(PROGRAM, folder))
    print(type_check(program, BIN / "python"))
    run(BIN / "gradcam-callback", "explain-cause", "detached", cwd=folder)
    reports = json.loads(run(BIN / "gradcam-callback", "doctor", "--json", program, folder, cwd=folder))
    print(f"the doctor reports on {len(reports)} layers and finds nothing")
    run(BIN / "python", program, folder, cwd=folder)
    with tensorboard(folder, python=str(BIN / "python")) as board:
        print(f"the tab has the runs {board.wait_for_runs()}")
        status, page = board.get("data/plugin/gradcam/web/tab.js")
        assert status == 200, page
    run(BIN / "gradcam-callback", "report", folder / "user" / "version_0", "-o", folder / "report.html", cwd=folder)
    print(f"the report has {megabytes((folder / 'report.html').stat().st_size)}")


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints; it has to end well, and sees nothing of this repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    print("$", *command, flush=True)
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"It ended with status {done.returncode}.\n{done.stdout}")
    return done.stdout


def print_sizes() -> None:
    """The installed distributions by their size on the disk."""
    [site] = ENVIRONMENT.glob("lib/python*/site-packages")
    sizes = {found.name: size_of(found) for found in distributions(path=[str(site)])}
    largest = sorted(sizes, key=lambda name: -sizes[name])
    print(f"{len(sizes)} distributions, {megabytes(sum(sizes.values()))}:")
    for name in dict.fromkeys([*largest[:SHOWN], "gradcam-callback"]):
        print(f"  {name:32} {megabytes(sizes[name]):>10}")


def size_of(found: Distribution) -> int:
    """Its files, in bytes."""
    paths = [Path(str(found.locate_file(file))) for file in found.files or ()]
    return sum(path.stat().st_size for path in paths if path.exists())


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist"))
