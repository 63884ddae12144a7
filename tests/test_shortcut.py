"""The data set with a shortcut: what is drawn where, and what gives the class away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradcam_callback.demo.data import MEAN, STD
from gradcam_callback.demo.shortcut import GREY, ShortcutData, colours, square_box

pytestmark = pytest.mark.usefixtures("few_digits")


def batch_of(stage: str = "val", **options: Any) -> Any:
    data = ShortcutData(batch_size=16, **options)
    data.setup("fit")
    return next(iter(getattr(data, f"{stage}_dataloader")()))


def squares(batch: Any) -> torch.Tensor:
    """The colour of each square, `(N, 3)` in 0..1."""
    left, top, right, bottom = square_box()
    pixels = (batch.image * STD + MEAN)[:, :, top:bottom, left:right].flatten(2)
    assert (pixels.amax(2) - pixels.amin(2)).max() < 1e-5
    return pixels.mean(2)


@pytest.mark.parametrize("stage", ["train", "val"])
def test_the_square_tells_the_class(stage: str) -> None:
    batch = batch_of(stage)
    torch.testing.assert_close(squares(batch), colours(10)[batch.label], rtol=0, atol=1e-5)


def test_it_says_nothing_in_testing() -> None:
    data = ShortcutData()
    data.setup("test")
    told = torch.cat([(squares(b) - colours(10)[b.label]).abs().amax(1) < 1e-4 for b in data.test_dataloader()])
    assert told.float().mean() < 0.5


def test_without_squares_there_is_none() -> None:
    image = batch_of(decoy=False).image
    assert torch.equal(image[:, 0], image[:, 1])  # no colour anywhere
    assert torch.equal(image[:, 0], image[:, 2])


def test_a_faint_square_is_near_grey_and_a_weak_one_tells_some() -> None:
    assert (squares(batch_of(contrast=0.1)) - GREY).abs().max() <= 0.05 + 1e-5
    batch = batch_of(strength=0.0)
    assert ((squares(batch) - colours(10)[batch.label]).abs().amax(1) > 1e-3).any()


def test_the_box_holds_the_digit() -> None:
    batch = batch_of(decoy=False, fragments=0)
    for image, box in zip(batch.image * STD + MEAN, batch.box.int().tolist(), strict=True):
        left, top, right, bottom = box
        assert image[:, top:bottom, left:right].sum() == pytest.approx(float(image.sum()), rel=1e-4)
        assert image[:, top, left:right].amax() > 0 or image[:, bottom - 1, left:right].amax() > 0


def test_a_seed_makes_it_the_same_again() -> None:
    assert torch.equal(batch_of(seed=3).image, batch_of(seed=3).image)
    assert not torch.equal(batch_of(seed=3).image, batch_of(seed=4).image)


@pytest.mark.parametrize("options", [{"strength": 1.5}, {"contrast": -0.1}, {"batch_size": 0}], ids=str)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="given"):
        ShortcutData(**options)
