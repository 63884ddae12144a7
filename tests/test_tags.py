"""No two things are written under one tag, whatever layers are called."""

from __future__ import annotations

import itertools

import pytest

from gradcam_callback.reporting.tags import Tags

OWN = ("alerts", "seconds", "null_gradients", "empty_maps")


def test_usual_tags() -> None:
    tags = Tags(["model.layer4", "model.head#-1"])
    assert [getattr(tags, name) for name in OWN] == [f"gradcam/{name}" for name in OWN]
    assert tags.panel("model.layer4") == "gradcam/model.layer4"
    assert tags.panel("model.head#-1", page=1) == "gradcam/model.head#-1/page_2"
    assert tags.gradient_norm("model.layer4") == "gradcam/gradient_norm/model.layer4"


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages_have_tags_of_their_own(stage: str) -> None:
    tags = Tags(["stem"], stage=stage)
    assert (tags.seconds, tags.panel("stem")) == (f"gradcam/{stage}/seconds", f"gradcam/{stage}/stem")


def test_a_later_callback_takes_its_number_where_it_has_to() -> None:
    third = Tags(["stem", "other"], [["stem"], ["head"]])
    assert (third.alerts, third.panel("stem"), third.panel("other")) == (
        "gradcam/alerts_3",
        "gradcam/stem_3",
        "gradcam/other",
    )
    assert third.gradient_norm("stem") == "gradcam/gradient_norm/stem_3"


WORDS = [*OWN, "layer", "gradient_norm", "validate", "test", "page", "page_2", "a"]
NAMES = [*WORDS, *(f"{word}_2" for word in WORDS), *("/".join(pair) for pair in itertools.product(WORDS, repeat=2))]
NAMES += [
    "alerts_2_2",
    "alerts_3",
    "a_2_2",
    "a/page_2/page_2",
    "layer/a%2Fpage",
    "layer/layer%2Fa",
    "layer/a%2Fb",
    "layer/a/b",
    "a%2Fpage",
    "",
    "a\n",
]


def test_no_tag_is_given_twice() -> None:
    """Three callbacks with layers of the most confusing names, in all stages."""
    names = list(dict.fromkeys(NAMES))
    callbacks = [names, names[::-1], names[::2]]
    given = []
    for stage in ("fit", "validate", "test"):
        for number, layers in enumerate(callbacks):
            tags = Tags(layers, callbacks[:number], stage)
            given += [getattr(tags, name) for name in OWN]
            given += [tags.gradient_norm(layer) for layer in layers]
            given += [tags.panel(layer, page) for layer in layers for page in range(3)]

    assert len(set(given)) == len(given)
    assert all(tag.startswith("gradcam/") for tag in given)
