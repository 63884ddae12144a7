"""The command `gradcam-callback`: LightningCLI with fit, validate, test, doctor and layers, and others without it."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import logging
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import docstring_parser
from jsonargparse import ActionConfigFile, DefaultHelpFormatter  # type: ignore[attr-defined]  # exported all the same

from gradcam_callback import GradCAMCallback, pages, report
from gradcam_callback.attach.command import attach_to_program
from gradcam_callback.doctor import COULD_NOT_RUN, DoctorTrainer, examine_program
from gradcam_callback.lightning_api import PACKAGE, LightningDataModule, LightningModule
from gradcam_callback.lightning_cli import ArgsType, LightningArgumentParser, LightningCLI
from gradcam_callback.option_errors import clarify
from gradcam_callback.reporting.terminal import print_markdown

CALLBACK = "gradcam_callback.GradCAMCallback"

DESCRIPTION = f"""\
Train, validate and test image models, with Grad-CAM heatmaps and gradient-null alerts in TensorBoard.

Start here:
  gradcam-callback fit --config FILE                 configurations to start from: {pages.CONFIGS}
  gradcam-callback fit --help                        every option; those of the callback come last
  gradcam-callback doctor --config FILE              why is my gradient None? without training; same file as fit
  gradcam-callback doctor train.py fit ...           the same for a program of yours, LightningCLI or not
  gradcam-callback attach -- python train.py ...     the callback in the Trainers of a program of yours, unchanged
  gradcam-callback layers --config FILE              which layers there are, and which one `auto` takes, and why
  gradcam-callback check --config FILE               do the maps depend on the weights at all? an exit status for CI
  gradcam-callback explain --config FILE --ckpt CKPT images/ -o FOLDER
                                                     panels and a report of a trained model, without training again
  gradcam-callback report RUN [RUN ...] -o FILE      one HTML file of recorded runs: every epoch, without TensorBoard
  gradcam-callback benchmark                         which method shows what decides? a quarter of an hour, no download
  gradcam-callback explain-cause [SLUG]              what an alert means, e.g. detached

Documentation: {pages.REPOSITORY}
"""

USAGE = "gradcam-callback {} --config FILE [--KEY VALUE ...]"
DOCTOR_USAGE = """\
gradcam-callback doctor --config FILE [--json] [--KEY VALUE ...]
       gradcam-callback doctor [--json] PROGRAM.py [ARGUMENTS ...]
       gradcam-callback doctor [--json] -m MODULE [ARGUMENTS ...]

Where a program of yours trains, write `gradcam-callback doctor` in place of `python`. It is run up to its first
`trainer.fit`, and what it would train is examined, with its own GradCAMCallback or else with one that has no options.\
"""

EXPLAIN_USAGE = """\
gradcam-callback explain --config FILE [--ckpt CHECKPOINT] [-o FOLDER] [--KEY VALUE ...] [IMAGES ...]

IMAGES are image files or folders of them; without any, the probes of the validation are explained.\
"""
_USAGES = {"doctor": DOCTOR_USAGE, "explain": EXPLAIN_USAGE}
_EXAMINE = ("doctor", "layers", "check", "explain")

EXAMPLE = f"""\
the callback:
  Grad-CAM is a callback of the trainer. In the YAML file:

    trainer:
      callbacks:
        - class_path: {CALLBACK}
          init_args:
            target_layers: network.layer4
            probes: 8

  Its options, all under init_args, with their types and defaults:
"""


class HelpFormatter(DefaultHelpFormatter):
    """Prints description and epilog as they are written, line by line."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


class Parser(LightningArgumentParser):
    """A parser whose errors are short: no list of all options, and for an unknown one those that are possible."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with 2."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        print(f"error: {clarify(message)}\nFor all options: gradcam-callback fit --help", file=sys.stderr)
        self.exit(2)


class GradCAMCLI(LightningCLI):
    """LightningCLI for any model and any data, whose help tells about the callback."""

    def __init__(self, args: ArgsType = None) -> None:
        subcommands = {
            name: {
                "usage": _USAGES.get(name, USAGE.format(name)),
                "formatter_class": HelpFormatter,
                "epilog": describe_callback(),
            }
            for name in self.subcommands()
        }
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=DoctorTrainer,
            save_config_kwargs={"overwrite": True},  # a second run may use the same folder
            parser_kwargs={
                "prog": "gradcam-callback",
                "description": DESCRIPTION,
                "formatter_class": HelpFormatter,
                **subcommands,
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """LightningCLI's subcommands but `predict`, in which nothing is validated; and those that only look."""
        known = {name: skip for name, skip in LightningCLI.subcommands().items() if name != "predict"}
        return {**known, **{name: {"model", "datamodule"} for name in _EXAMINE}}

    def before_instantiate_classes(self) -> None:
        """Give a command that only looks one device: more would tell it nothing new."""
        if self.subcommand in _EXAMINE:
            trainer = self.config[self.subcommand].trainer
            trainer.devices = trainer.num_nodes = 1

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser with the option `--config`, for the command or one of its subcommands."""
        parser = Parser(**kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A configuration file, YAML or JSON.")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what `main` was given; LightningCLI would warn that it does not come from the command line."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]  # `main` gives a list


def describe_callback() -> str:
    """List the callback's options, with types, defaults and documentation, as they are given in YAML."""
    documentation = docstring_parser.parse(inspect.getdoc(GradCAMCallback) or "")
    texts = {item.arg_name: item.description or "" for item in documentation.params if item.args[0] == "param"}
    lines = [EXAMPLE]
    for name, parameter in inspect.signature(GradCAMCallback).parameters.items():
        lines.append(f"  {name}: {parameter.annotation} = {parameter.default!r}")
        lines += textwrap.wrap(texts.get(name, ""), width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def explain_cause(args: list[str]) -> None:
    """Print what a cause or an alert means; without its slug, list them.

    Args:
        args: What stands behind `explain-cause`.

    Raises:
        ValueError: There is no such slug.
    """
    parser = argparse.ArgumentParser("gradcam-callback explain-cause", description="What an alert means.")
    parser.add_argument("slug", nargs="?", help="the alert's name, e.g. detached; without one, all are listed")
    slug = parser.parse_args(args).slug
    if slug is not None:
        print_markdown(f"{pages.section(slug)}\n\n{pages.url(slug)}")
        return
    for name, description in pages.contents().items():
        print(f"{name:22}{description.replace('`', '')}")


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; None takes those of the process. Without any, the help is printed.

    Raises:
        SystemExit: With 0 after a help text; with 2, and a message on stderr, after an option or data that cannot be
            used. The status of `doctor`, `check` and `explain` is told in `DoctorTrainer`.
    """
    _hush_lightning()
    arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        _dispatch(*arguments)
    except Exception as error:
        message = _own_message(error)
        if message is None or "JSONARGPARSE_DEBUG" in os.environ:
            if arguments[0] not in ("doctor", "check", "explain"):
                raise
            traceback.print_exc()  # the exit status tells a model that could not be run from one with a finding
            sys.exit(COULD_NOT_RUN)
        print(f"error: {message}\nFor the traceback, set JSONARGPARSE_DEBUG=1.", file=sys.stderr)
        sys.exit(2)


def _dispatch(command: str, *rest: str) -> None:
    if command == "explain-cause":
        return explain_cause(list(rest))
    if command == "attach":
        return attach_to_program(rest)
    if command == "report":
        return report.run_command(list(rest))
    if command == "benchmark":
        from gradcam_callback.benchmark.command import run_command  # nothing else needs what it imports

        return run_command(list(rest))
    program = rest[1:] if rest[:1] == ("--json",) else rest
    is_module = program[:1] == ("-m",) and len(program) > 1
    if command == "doctor" and program and (is_module or not program[0].startswith("-")):
        examine_program(program, as_json=program != rest)
    if command == "explain":
        rest = tuple(explain_options(rest))
    # A bare `--json` reads better than the value that jsonargparse asks for.
    GradCAMCLI([command, *("--json=true" if argument == "--json" else argument for argument in rest)])


def explain_options(args: Sequence[str]) -> Iterator[str]:
    """The arguments of `explain` as LightningCLI takes them: its short options, and images that stand by themselves.

    Args:
        args: What stands behind `explain`.
    """
    short = {"--ckpt": "--ckpt_path", "-o": "--output"}
    images: list[str] = []
    waiting = iter(args)
    for argument in waiting:
        if not argument.startswith("-"):
            images.append(argument)
            continue
        name, equals, value = argument.partition("=")
        yield f"{short.get(name, name)}{equals}{value}"
        if not equals and name not in ("-h", "--help", "--print_config"):
            yield from itertools.islice(waiting, 1)
    if images:
        yield f"--images={json.dumps(images)}"


def _own_message(error: Exception) -> str | None:
    """What this package says about bad input, if that is what ended the run. Any other error needs its traceback."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ValueError, FileNotFoundError)) and _raised_in(cause).startswith("gradcam_callback."):
            return str(cause)
        cause = cause.__cause__
    # Most versions of jsonargparse keep of the error that a class raised only its text, among those of other types.
    _, _, tried = str(error).partition("\nErrors:\n")
    reasons = re.findall(r"^  - ((?!Expected a |Not a valid subclass).*(?:\n    .*)*)", tried, re.MULTILINE)
    return "\n".join(reasons) or None


def _raised_in(error: BaseException) -> str:
    """The module whose code raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def _hush_lightning() -> None:
    """Leave out what Lightning says about its own code, and about packages that could be installed beside it."""
    warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
    logger = logging.getLogger(f"{PACKAGE}.utilities.rank_zero")
    logger.addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()
