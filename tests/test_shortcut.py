"""Digits with a square that gives the class away: where things lie, and what the colours tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradcam_callback.demo.data import MEAN, STD, load_digits
from gradcam_callback.demo.shortcut import Digit, ShortcutData, ShortcutDigits, colours, square_box

COUNT = 300


def digits(share: float | None = 1.0, contrast: float = 1.0, seed: int = 0) -> ShortcutDigits:
    pixels, labels = load_digits()
    return ShortcutDigits(pixels[:COUNT], labels[:COUNT], share=share, contrast=contrast, seed=seed)


def batch_of(data: ShortcutDigits) -> Digit:
    return next(iter(torch.utils.data.DataLoader(data, COUNT)))


def inside(images: Tensor, box: Tensor) -> Tensor:
    """The part of images `(N, C, H, W)` within a box of whole pixels."""
    left, top, right, bottom = box.int().tolist()
    return images[..., top:bottom, left:right]


def told(batch: Digit) -> Tensor:
    """Which class's colour each square has."""
    colour = inside(batch.image * STD + MEAN, batch.decoy[0]).mean(dim=(2, 3))
    return torch.cdist(colour, colours(10)).argmin(dim=1)


def test_a_batch_has_images_labels_and_both_boxes() -> None:
    batch = batch_of(digits())
    assert [tuple(part.shape) for part in batch] == [(COUNT, 3, 64, 64), (COUNT,), (COUNT, 4), (COUNT, 4)]
    assert batch._fields == ("image", "label", "box", "decoy")
    assert batch.image.dtype == batch.box.dtype == batch.decoy.dtype == torch.float32
    assert batch.decoy.unique(dim=0).tolist() == [[float(side) for side in square_box()]]


def test_the_box_holds_the_digit_and_is_no_larger() -> None:
    pixels, labels = load_digits()
    data = ShortcutDigits(pixels[:COUNT], labels[:COUNT], fragments=0, share=None)
    for image, _, box, _ in data:
        ink = (image * STD + MEAN)[0] > 1e-6
        rows, columns = ink.any(dim=1).nonzero(), ink.any(dim=0).nonzero()
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(side) for side in found]


def test_each_square_tells_its_class() -> None:
    batch = batch_of(digits())
    square = inside(batch.image * STD + MEAN, batch.decoy[0])
    torch.testing.assert_close(square, colours(10)[batch.label][:, :, None, None].expand_as(square))
    assert told(batch).equal(batch.label)


@pytest.mark.parametrize(("share", "right"), [(0.0, 0.1), (0.5, 0.55)])
def test_some_squares_tell_nothing(share: float, right: float) -> None:
    batch = batch_of(digits(share))
    assert (told(batch) == batch.label).float().mean().item() == pytest.approx(right, abs=0.08)


def test_a_faint_square_is_nearly_grey() -> None:
    faint = inside(batch_of(digits(contrast=0.1)).image * STD + MEAN, torch.tensor(square_box()))
    assert (faint - 0.5).abs().max().item() == pytest.approx(0.05, abs=1e-4)


def test_without_squares_the_images_are_the_same_elsewhere() -> None:
    plain, spoilt = batch_of(digits(None)), batch_of(digits())
    assert not plain.decoy.any()
    assert plain.box.equal(spoilt.box)
    inside(plain.image, spoilt.decoy[0]).zero_()
    inside(spoilt.image, spoilt.decoy[0]).zero_()
    assert plain.image.equal(spoilt.image)


def test_the_seed_says_where_everything_is() -> None:
    one, same, other = (batch_of(digits(0.5, seed=seed)) for seed in (3, 3, 4))
    assert all(part.equal(again) for part, again in zip(one, same, strict=True))
    assert not one.box.equal(other.box)
    assert not told(one).equal(told(other))


def test_only_in_testing_do_the_squares_tell_nothing() -> None:
    data = ShortcutData()
    data.setup("fit")
    rights = [
        (told(batch) == batch.label).float().mean().item()
        for batch in (
            next(iter(loader())) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader)
        )
    ]
    assert rights[:2] == [1, 1]
    assert rights[2] == pytest.approx(0.1, abs=0.08)
    for batch in (next(iter(data.val_dataloader())), next(iter(data.test_dataloader()))):
        assert len(batch.label) == 250


def test_without_decoy_no_set_has_squares() -> None:
    data = ShortcutData(decoy=False)
    data.setup("fit")
    assert not any(part.decoys.any() for part in (data.train_set, data.validation_set, data.test_set))


@pytest.mark.parametrize("wrong", [{"strength": 1.5}, {"contrast": -0.1}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    [name] = wrong
    with pytest.raises(ValueError, match=f"{name}.* given: "):
        ShortcutData(**wrong)
