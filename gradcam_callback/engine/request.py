"""What is asked of the engine, resolved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradcam_callback.engine.layers import AUTO, check_names
from gradcam_callback.engine.layouts import Layout, LayoutInput, as_layout
from gradcam_callback.engine.methods import Method, MethodInput, as_method
from gradcam_callback.engine.targets import OutputSpec, Target, TargetInput, as_target


@dataclass(frozen=True, eq=False)  # targets hold tensors
class CAMRequest:
    """Which layers are explained, for which targets, by which method.

    Attributes:
        layers: Names of modules, or "auto" alone.
        targets: At least one; there is a result for each.
        method: How the map is made.
        output: Where the logits are in what the model returns; None finds them.
        layout: How activations lie in space, if that was given; "tokens" or None where it has to be found.
        layouts: Layer to layout, once they are found.
        samples_depend: Whether the samples of a batch are known to depend on each other.
        remark: What is to be said of the layer that "auto" has chosen, in a few words; empty where it is nothing.
    """

    layers: tuple[str, ...]
    targets: tuple[Target, ...]
    method: Method
    output: OutputSpec = None
    layout: Layout | str | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    samples_depend: bool = False
    remark: str = ""

    @classmethod
    def of(
        cls,
        layers: str | Sequence[str] = AUTO,
        targets: Sequence[TargetInput] = ("predicted",),
        method: MethodInput = "gradcam",
        output: OutputSpec = None,
        layout: LayoutInput = None,
    ) -> CAMRequest:
        """Check what was asked for, before any model has run.

        Raises:
            TypeError: Layers or a target are of a wrong type.
            ValueError: There is no such method or layout; what follows a `#` in a layer's name is no number; a target
                is no class.
        """
        chosen = as_method(method)
        return cls(check_names(layers), tuple(map(as_target, targets)), chosen, output, as_layout(layout))

    def at(self, *layers: str) -> CAMRequest:
        """The same at other layers."""
        return replace(self, layers=layers)

    def reading(self, layouts: Mapping[str, Layout]) -> CAMRequest:
        """The same with the layouts of its layers."""
        return replace(self, layouts=layouts)

    @property
    def layout_kind(self) -> str | None:
        """The kind of layout that has to be found, "tokens"; None where it may be any."""
        return self.layout if isinstance(self.layout, str) else None

    @property
    def is_read(self) -> bool:
        """Whether the layouts of all its layers are known."""
        return all(layer in self.layouts for layer in self.layers)

    def part(self, samples: slice) -> CAMRequest:
        """The same for some of the samples."""
        return replace(self, targets=tuple(target.part(samples) for target in self.targets))

    @property
    def uses_auto(self) -> bool:
        """Whether the layer has still to be chosen."""
        return self.layers == (AUTO,)
