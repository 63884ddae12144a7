"""A method made smooth: the mean of its maps over noisy copies of the images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradcam_callback.engine.methods.formulas import gradcam
from gradcam_callback.engine.methods.method import FormulaMethod, Forwards, Rerun


@dataclass(frozen=True)
class Smooth:
    """The mean of a formula's maps over noisy copies of the images, in batches of them.

    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, equation in section 3, with maps for gradients.
    It costs a forward pass and a partial backward pass for each copy.

    Attributes:
        base: The method whose maps are averaged; a formula of activation and gradient.
        samples: How many noisy copies of each image.
        noise: The standard deviation of the noise, as a share of the range of each image's values.
        seed: Of the noise, which is the same in every pass on one kind of device.
        name: What it is called in a configuration.
    """

    base: FormulaMethod = field(default_factory=lambda: FormulaMethod("gradcam", gradcam))
    samples: int = 16
    noise: float = 0.15
    seed: int = 0
    name: str = "smooth_gradcam"

    @property
    def needs_gradient(self) -> bool:
        """That of the images themselves too: without it, there is none of noisy ones either."""
        return True

    @property
    def extra_forwards(self) -> Forwards:
        """One for each copy."""
        return self.samples

    def map(self, activation: Tensor, gradient: Tensor | None, rerun: Rerun) -> Tensor:
        """The map `(N, h, w)`."""
        images = rerun.images
        flat = images.flatten(1)
        reach = (flat.amax(dim=1) - flat.amin(dim=1)).view(-1, *[1] * (images.ndim - 1))
        generator = torch.Generator(images.device)

        def noisy(number: int) -> Tensor:
            generator.manual_seed(self.seed + number)
            drawn = torch.empty_like(images).normal_(generator=generator)
            return images + drawn * (self.noise * reach)

        maps = [self.base.map(*pair) for pair in rerun.pairs_of_images(self.samples, noisy)]
        return torch.stack(maps).mean(dim=0)
