"""The sanity check of Adebayo et al., 2018: whether maps depend on the weights of the model."""

from gradcam_callback.engine.sanity.checking import Progress, check_weights, sanity_check
from gradcam_callback.engine.sanity.rank_correlation import rank_correlation
from gradcam_callback.engine.sanity.result import THRESHOLD, LayerSanity, SanityResult, Stage

__all__ = [
    "THRESHOLD",
    "LayerSanity",
    "Progress",
    "SanityResult",
    "Stage",
    "check_weights",
    "rank_correlation",
    "sanity_check",
]
