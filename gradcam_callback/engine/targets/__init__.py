"""What is explained: from what the model returned to one score a sample."""

from gradcam_callback.engine.targets.classes import (
    ClassTarget,
    HighestTarget,
    PositiveTarget,
    check_target,
    choose_targets,
)
from gradcam_callback.engine.targets.detection import DetectionTarget
from gradcam_callback.engine.targets.function import FunctionTarget
from gradcam_callback.engine.targets.logits import (
    class_count,
    count_alternatives,
    find_logits,
    find_maps,
    has_probabilities,
    own_probabilities,
    predict,
    score,
)
from gradcam_callback.engine.targets.reconstruction import ReconstructionTarget
from gradcam_callback.engine.targets.segmentation import SegmentationTarget
from gradcam_callback.engine.targets.short_forms import POSSIBLE, TargetInput, as_target
from gradcam_callback.engine.targets.similarity import SimilarityTarget
from gradcam_callback.engine.targets.target import Annotations, Kind, OutputSpec, Scores, Target, Task, bind

__all__ = [
    "POSSIBLE",
    "Annotations",
    "ClassTarget",
    "DetectionTarget",
    "FunctionTarget",
    "HighestTarget",
    "Kind",
    "OutputSpec",
    "PositiveTarget",
    "ReconstructionTarget",
    "Scores",
    "SegmentationTarget",
    "SimilarityTarget",
    "Target",
    "TargetInput",
    "Task",
    "as_target",
    "bind",
    "check_target",
    "choose_targets",
    "class_count",
    "count_alternatives",
    "find_logits",
    "find_maps",
    "has_probabilities",
    "own_probabilities",
    "predict",
    "score",
]
