"""The callback that is attached from outside, and its options, from a command line or from YAML."""

from __future__ import annotations

import inspect
import json
import os
import re
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]  # exported all the same

from gradcam_callback import GradCAMCallback
from gradcam_callback.errors import BadInputError
from gradcam_callback.lightning_api import LightningModule, Trainer
from gradcam_callback.option_errors import clarify, possible
from gradcam_callback.trainer_context import TrainerContext

ATTACHED = "Grad-CAM is attached to the Trainers of this program, because GRADCAM_CALLBACK_ATTACH or _CONFIG is set."
USAGE = "gradcam-callback attach [--OPTION VALUE ...] -- COMMAND [ARGUMENT ...]"
GAVE_WAY = "Grad-CAM is not attached to this Trainer, which has a GradCAMCallback of its own."


class AttachedCallback(GradCAMCallback):
    """A GradCAMCallback that its program does not know of.

    It gives way to one that the program has put into the Trainer. What cannot be explained, such as a model that takes
    no images, or a layer that is not there, is an alert and does not end the run.
    """

    _refuses = False
    _said: ClassVar[set[str]] = set()  # in this process

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin another run, or leave the Trainer to its own callback."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if callback is not self]
        if any(isinstance(callback, GradCAMCallback) for callback in others):
            trainer.callbacks = others  # type: ignore[attr-defined]  # the list itself is being iterated
            return self._say(TrainerContext(trainer, pl_module), GAVE_WAY)
        super().setup(trainer, pl_module, stage)
        self._say(TrainerContext(trainer, pl_module), ATTACHED)

    def _say(self, run: TrainerContext, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._session_of(run.trainer).reporter.notice(run, text)


class OptionsFile(ActionConfigFile):
    """Reads the options from YAML: alone, or as they stand in the `callbacks` of a LightningCLI."""

    def __call__(self, parser: Any, cfg: Any, value: Any, option_string: str | None = None) -> None:
        """Take up the options from the path of a file, or its text."""
        super().__call__(parser, cfg, json.dumps(plain_options(value)), option_string)  # type: ignore[no-untyped-call]


def plain_options(config: str) -> dict[str, Any]:
    """The options of the callback by name.

    Args:
        config: The path of a YAML file, or its text.

    Raises:
        ValueError: It is neither, or it is about another class.
    """
    text = Path(config).read_text(encoding="utf-8") if os.path.isfile(config) else config
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise BadInputError(
            f"The options are in a YAML file, by name (`probes: 8`), or are given as its text; there is no such file, "
            f"and it is no such text: {config!r}."
        )
    if "class_path" not in content:
        return content
    if not str(content["class_path"]).endswith("GradCAMCallback"):
        raise BadInputError(f"What is attached is a gradcam_callback.GradCAMCallback; given: {content['class_path']}.")
    return content.get("init_args") or {}


def attached_callback(config: str | None) -> AttachedCallback:
    """The callback for one Trainer.

    Args:
        config: The path of a YAML file of options, or its text; None for no options.

    Raises:
        ValueError: An option is not possible.
    """
    return read_options([] if not config else ["--config", config])[0]


def read_options(args: Sequence[str]) -> tuple[AttachedCallback, str]:
    """Read options as they are given on a command line.

    Args:
        args: `--NAME VALUE`, with values in YAML, and `--config FILE`; what comes later counts.

    Returns:
        A callback, and all its options as JSON for `attached_callback`.

    Raises:
        ValueError: An option is not possible; the message says which are.
        SystemExit: With 0, after the help.
    """
    parser = ArgumentParser("gradcam-callback attach", usage=USAGE, exit_on_error=False)
    parser.add_argument("--config", action=OptionsFile, help="A YAML file of options.")
    parser.add_class_arguments(GradCAMCallback, as_group=False)
    try:
        given = parser.parse_args(list(args))
    except ArgumentError as error:
        raise BadInputError(_clear(str(error))) from None
    del given["config"]
    # Its name until jsonargparse 4.49.
    made = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return AttachedCallback(**made(given).as_dict()), parser.dump(given, format="json")


def _clear(message: str) -> str:
    """What jsonargparse says, and for an option that there is not those that are possible."""
    unknown = re.match(r"(?:[Uu]nrecognized arguments: --|Option '|Key ')(\w+)", message)
    if unknown is None:
        return clarify(message)
    return "\n".join(
        [message, *possible(unknown[1], list(inspect.signature(GradCAMCallback).parameters), "The options")]
    )
