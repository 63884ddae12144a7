"""The command `gradcam-callback attach`: run a program whose Trainers get the callback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gradcam_callback.attach.attached import USAGE, read_options
from gradcam_callback.attach.factory import ATTACH, CONFIG
from gradcam_callback.errors import BadInputError


def attach_to_program(args: Sequence[str]) -> None:
    """Check the options, and become the program.

    Args:
        args: What stands behind `attach`: the options of the callback, `--`, and the command.

    Raises:
        ValueError: An option is not possible, or the command cannot be started.
        SystemExit: With 0, after the help.
    """
    place = list(args).index("--") if "--" in args else len(args)
    command = args[place + 1 :]
    # As in the program, whose own functions may be among the options.
    sys.path[:0] = [os.getcwd(), *(str(Path(word).resolve().parent) for word in command if word.endswith(".py"))]
    if not command and not {"-h", "--help"} & set(args):
        raise BadInputError(f"There is no command to run, behind `--`. {USAGE}")
    _, config = read_options(args[:place])
    environment = {**os.environ, ATTACH: "1", CONFIG: config}
    try:
        _become(list(command), environment)
    except OSError as error:
        raise BadInputError(f"{command[0]!r} cannot be started: {error.strerror}.") from error


def _become(command: list[str], environment: dict[str, str]) -> None:
    """Run a command in place of this process, so that its signals and its exit status are the command's own."""
    if os.name == "nt":  # where the shell would not wait for it
        sys.exit(subprocess.call(command, env=environment))
    os.execvpe(command[0], command, environment)
