"""Methods: from the activation at a layer, and whatever else one needs, to the map."""

from gradcam_callback.engine.methods.formulas import (
    gradcam,
    gradcam_elementwise,
    gradcam_plus_plus,
    hirescam,
    layercam,
    xgradcam,
)
from gradcam_callback.engine.methods.method import PER_CHANNEL, FormulaMethod, Method, Rerun, make_map, price
from gradcam_callback.engine.methods.registry import METHODS, MethodInput, as_method, as_method_on_null, find_method

__all__ = [
    "METHODS",
    "PER_CHANNEL",
    "FormulaMethod",
    "Method",
    "MethodInput",
    "Rerun",
    "as_method",
    "as_method_on_null",
    "find_method",
    "gradcam",
    "gradcam_elementwise",
    "gradcam_plus_plus",
    "hirescam",
    "layercam",
    "make_map",
    "price",
    "xgradcam",
]
