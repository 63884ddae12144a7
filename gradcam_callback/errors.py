"""What this package raises and warns of."""

from __future__ import annotations

from gradcam_callback.results import Diagnosis


class BadInputError(ValueError):
    """What was given cannot be used; the message says what it was, what is possible, and what to do."""


class UnknownSpaceError(BadInputError):
    """Which axes of the inputs are those of space cannot be told, or they are not the last ones.

    That lies in the data and the model, and not in an option: a training goes on without maps.
    """


class GradientNullWarning(UserWarning):
    """A probe has no usable gradient at a target layer; there is no heatmap for it."""


class GradientNullError(RuntimeError):
    """The same, with `on_null: raise`."""


class ForwardFailedError(RuntimeError):
    """The model raised on the probes.

    Attributes:
        diagnosis: The error in words, and the line that raised it.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        super().__init__(diagnosis)  # the argument travels when the error is sent to another process
        self.diagnosis = diagnosis

    def __str__(self) -> str:
        return self.diagnosis.message
