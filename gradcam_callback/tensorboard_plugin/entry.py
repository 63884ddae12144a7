"""The entry point. Only the standard library is imported here, and nothing in it can fail; see the package."""

from __future__ import annotations

import logging
from typing import Any

PLUGIN = "gradcam"
LOADER = "Loader"


def __getattr__(name: str) -> Any:
    """The loader's class is made when TensorBoard asks for it, because its base is TensorBoard's."""
    if name != LOADER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _make_loader()


def _make_loader() -> type:
    from tensorboard.plugins import base_plugin

    class Loader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
        """Loads the plugin; where that fails, TensorBoard goes on without it."""

        def fix_flags(self, flags: Any) -> None:
            """Have every look kept: by default TensorBoard keeps a sample of a plugin's tensors."""
            samples = getattr(flags, "samples_per_plugin", None)
            if isinstance(samples, dict):
                samples.setdefault(PLUGIN, 0)  # all of them

        def load(self, context: Any) -> Any:
            """The plugin; None where it cannot be loaded."""
            try:
                from gradcam_callback.tensorboard_plugin.plugin import GradCAMPlugin

                return GradCAMPlugin(context)
            except Exception as error:
                logging.getLogger("gradcam_callback").warning("There is no Grad-CAM tab: %s", error)
                return None

    return Loader
