"""What Lightning calls for each Trainer that is made: the entry points in `lightning.pytorch.callbacks_factory`.

Whoever has this package installed pays for it, so nothing is imported here before the environment asks for it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import gradcam_callback

ATTACH = "GRADCAM_CALLBACK_ATTACH"  # 1: attach; 0: do not, whatever else is set
CONFIG = "GRADCAM_CALLBACK_CONFIG"  # the options: the path of a YAML file, or its text


def callbacks() -> list[Any]:
    """The callback for a Trainer, if the environment asks for it. Whatever goes wrong is a warning."""
    if "gradcam_callback.callback" in sys.modules:
        _ = gradcam_callback.GradCAMCallback  # see Note [Two packages of Lightning]
    if not is_wanted(os.environ):
        return []
    try:
        from gradcam_callback.attach.attached import attached_callback

        return [attached_callback(os.environ.get(CONFIG))]
    except Exception as error:
        message = f"Grad-CAM could not be attached to the Trainer, which goes on without: {error}"
        with suppress(UserWarning):  # where the user has made errors of warnings
            warnings.warn(message, stacklevel=2)
        return []


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the environment asks for the callback."""
    switch = environment.get(ATTACH, "").strip().lower()
    return bool(switch or environment.get(CONFIG)) and switch not in ("0", "false", "no", "off")
