"""What the commands use of Lightning's CLI; apart from `lightning_api`, since it brings jsonargparse along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradcam_callback.lightning_api import PACKAGE, PACKAGES

if TYPE_CHECKING or PACKAGES[0] == PACKAGE:
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
else:
    from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

__all__ = ["ArgsType", "LightningArgumentParser", "LightningCLI"]
