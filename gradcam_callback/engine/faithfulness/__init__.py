"""How well a map tells what the score depends on, measured by changing the image where the map says.

Pure functions of tensors: a scorer, images, and maps in 0..1 of the images' size. They need no gradient, and give the
same each time. None of them knows where the thing is in the image; `measures` has those that do.
"""

from gradcam_callback.engine.faithfulness.curves import BLUR, STEPS, Fill, blurred_images, deletion, insertion
from gradcam_callback.engine.faithfulness.masking import average_drop, drop_and_increase, increase
from gradcam_callback.engine.faithfulness.road import NOISE, PERCENTILES, impute, road
from gradcam_callback.engine.faithfulness.scoring import PORTION, Scorer, ranks
from gradcam_callback.engine.faithfulness.summary import (
    Faithfulness,
    FaithfulnessOptions,
    forward_passes,
    measure,
)

__all__ = [
    "BLUR",
    "NOISE",
    "PERCENTILES",
    "PORTION",
    "STEPS",
    "Faithfulness",
    "FaithfulnessOptions",
    "Fill",
    "Scorer",
    "average_drop",
    "blurred_images",
    "deletion",
    "drop_and_increase",
    "forward_passes",
    "impute",
    "increase",
    "insertion",
    "measure",
    "ranks",
    "road",
]
