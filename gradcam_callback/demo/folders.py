"""Data that lies in a folder: FashionMNIST as torchvision keeps it, and images sorted into one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FashionMNISTData(LightningDataModule):
    """Zalando's FashionMNIST: 60,000 images of clothes to train on, 10,000 to validate and test on, 28 x 28, grey.

    Args:
        root: The folder that holds `FashionMNIST/raw/`.
        download: Whether to fetch the data (30 MB) into `root` if it is not there.
        batch_size: Images a step.
        num_workers: Processes that read images beside the training.

    Raises:
        FileNotFoundError: The data is not there, and `download` is false. Raised when a run starts.
    """

    classes = tuple(datasets.FashionMNIST.classes)

    def __init__(self, root: str = "data", download: bool = False, batch_size: int = 64, num_workers: int = 2) -> None:
        super().__init__()
        self.root = root
        self.download = download
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.transform = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.286], [0.353])]
        )

    def prepare_data(self) -> None:
        """Look for the data; fetch it if that was asked for."""
        try:
            datasets.FashionMNIST(self.root, download=self.download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"FashionMNIST is not in {Path(self.root, 'FashionMNIST', 'raw')} ({error}). "
                "Fetch it (30 MB) with --data.init_args.download true, "
                "or say with --data.init_args.root FOLDER where it is."
            ) from error

    def setup(self, stage: str) -> None:
        """Open both parts."""
        self.train_set = datasets.FashionMNIST(self.root, train=True, transform=self.transform)
        self.validation_set = datasets.FashionMNIST(self.root, train=False, transform=self.transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order."""
        return _loader(self.train_set, self.batch_size, self.num_workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return _loader(self.validation_set, self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches in order; the same images as for validation."""
        return self.val_dataloader()


class ImageFolderData(LightningDataModule):
    """Images of any size in folders: `root/train/CLASS/*` and `root/val/CLASS/*`.

    Training crops and mirrors at random; validation scales the shorter side and crops the middle. `root/test/CLASS/*`
    is used for testing, where it is there.

    Args:
        root: The folder that holds `train` and `val`.
        image_size: Height and width in pixels that the network gets.
        batch_size: Images a step.
        num_workers: Processes that read images beside the training.
        mean: What is subtracted from each channel, of pixels in 0..1. The default suits torchvision's trained weights.
        std: What each channel is divided by, likewise.

    Raises:
        FileNotFoundError: A folder is not there. Raised when a run starts.
        ValueError: The folders name different classes. Raised when a run starts.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int = 2,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.classes: tuple[str, ...] | None = None
        ending = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
        self.train_transform = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(), *ending])
        self.validation_transform = v2.Compose([v2.Resize(image_size * 8 // 7), v2.CenterCrop(image_size), *ending])

    def setup(self, stage: str) -> None:
        """Open the folders that the stage needs."""
        if stage == "fit":
            self.train_set = self._open("train", self.train_transform)
        if stage == "test":
            part = "test" if (self.root / "test").is_dir() else "val"
            self.test_set = self._open(part, self.validation_transform)
        else:
            self.validation_set = self._open("val", self.validation_transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in random order."""
        return _loader(self.train_set, self.batch_size, self.num_workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return _loader(self.validation_set, self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        """Batches in order."""
        return _loader(self.test_set, self.batch_size, self.num_workers)

    def _open(self, part: str, transform: v2.Transform) -> datasets.ImageFolder:
        folder = self.root / part
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder}. Needed are {self.root / 'train'} and {self.root / 'val'}, and in each "
                "one folder of images a class. Say where they are with --data.init_args.root FOLDER."
            )
        dataset = datasets.ImageFolder(folder, transform)
        classes = tuple(dataset.classes)
        if self.classes is not None and classes != self.classes:
            raise ValueError(
                f"{folder} holds the classes {', '.join(classes)}, and the folder beside it {', '.join(self.classes)}. "
                "Both need the same folders, since a class is numbered by its place among them."
            )
        self.classes = classes
        return dataset


def _loader(dataset: Dataset[Any], batch_size: int, num_workers: int, *, shuffle: bool = False) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=num_workers, persistent_workers=num_workers > 0)
