"""Methods that run the model again, and those by components, against plain loops and against peers that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import differentiate, relative_error
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.methods import as_method, gradcam, layercam
from gradcam_callback.engine.methods.method import FormulaMethod
from gradcam_callback.engine.methods.smooth import Smooth


class Net(nn.Module):
    """Two convolutions and a head, with negative activations and a negative score among the classes."""

    def __init__(self, *, act: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.features = nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, 6, 3)
        self.act = nn.ReLU() if act else nn.Identity()
        self.fc = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.act(self.features(self.stem(images).relu()))
        return self.fc(maps.relu().mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 21, 17, generator=torch.Generator().manual_seed(1))


def cams(model: nn.Module, inputs: Any, layer: str, **options: Any) -> Tensor:
    return compute_cam(model, inputs, layer, **options).cams[layer]


# Components, as the papers have them


@pytest.mark.parametrize("layer", ["stem", "features"], ids=["more places", "more channels"])
def test_eigencam_is_the_projection_on_the_first_singular_vector(layer: str, images: Tensor) -> None:
    images = images if layer == "stem" else images[:, :, :9, :9]
    evidence = differentiate(Net(), images, layer)
    got = cams(Net(), images, layer, method="eigencam")
    for maps, cam in zip(evidence.activation.double().numpy(), got, strict=True):
        matrix = maps.reshape(len(maps), -1).T
        projection = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
        projection = projection * np.sign(projection.sum())
        expected = projection.clip(min=0).reshape(maps.shape[1:])
        np.testing.assert_allclose(cam.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_eigengradcam_is_that_of_activation_times_gradient(images: Tensor) -> None:
    evidence = differentiate(Net(), images, "features", 2)
    got = cams(Net(), images, "features", method="eigengradcam", target=2)
    for parts, cam in zip((evidence.activation * evidence.gradient).double().numpy(), got, strict=True):
        matrix = parts.reshape(len(parts), -1).T
        projection = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
        projection = projection * np.sign(projection @ matrix.sum(axis=1))
        expected = projection.clip(min=0).reshape(parts.shape[1:])
        np.testing.assert_allclose(cam.numpy(), expected, rtol=1e-4, atol=1e-5 * expected.max())


# Perturbations, in plain loops


def by_loops(model: nn.Module, images: Tensor, target: int, weigh: Callable[..., Tensor]) -> Tensor:
    """Each image and each channel by itself."""
    maps = []
    for image in images:
        activation = model.act(model.features(model.stem(image[None]).relu()))[0]
        weights = weigh(model, image, activation, target)
        maps.append((weights[:, None, None] * activation).sum(0).clamp(min=0))
    return torch.stack(maps)


def score_weights(model: nn.Module, image: Tensor, activation: Tensor, target: int) -> Tensor:
    scores = []
    for channel in activation:
        mask = F.interpolate(channel[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0]
        mask = (mask - mask.min()) / (mask.max() - mask.min()) if mask.max() > mask.min() else mask * 0
        scores.append(model((image * mask)[None])[0, target])
    return torch.stack(scores).softmax(0)


def ablation_weights(model: nn.Module, image: Tensor, activation: Tensor, target: int) -> Tensor:
    score = model(image[None])[0, target]
    weights = []
    for channel in range(len(activation)):
        changed = activation.clone()
        changed[channel] = 0
        weights.append((score - model.fc(changed.relu().mean((1, 2)))[target]) / score.abs())
    return torch.stack(weights)


@pytest.mark.parametrize("act", [False, True], ids=["signed", "rectified"])
@pytest.mark.parametrize("target", range(4))
@pytest.mark.parametrize(("method", "weigh"), [("scorecam", score_weights), ("ablationcam", ablation_weights)])
@torch.no_grad()
def test_methods_without_a_gradient_are_what_loops_give(
    method: str, weigh: Callable[..., Tensor], target: int, act: bool, images: Tensor
) -> None:
    model = Net(act=act).eval()
    expected = by_loops(model, images, target, weigh)
    assert relative_error(cams(model, images, "act", method=method, target=target), expected).max() <= 1e-5


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_a_part_of_the_samples_has_the_same_maps(method: str, images: Tensor) -> None:
    many = torch.cat([images] * 12)
    whole = cams(Net(), many, "features", method=method)
    parts = torch.cat([cams(Net(), part, "features", method=method) for part in many.split(5)])
    assert relative_error(whole, parts).max() <= 1e-5


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "smooth_gradcam"])
def test_the_class_stays_that_of_the_images_themselves(method: str, images: Tensor) -> None:
    """Of a masked image, another class may be predicted."""
    with torch.no_grad():
        predicted = Net().eval()(images).argmax(1)
    by_index = cams(Net(), images, "features", method=method, target=predicted)
    assert torch.equal(cams(Net(), images, "features", method=method), by_index)


def test_what_stands_beside_the_images_goes_with_its_own_sample(images: Tensor) -> None:
    class Weighted(Net):
        def forward(self, images: Tensor, weights: Tensor) -> Tensor:
            return super().forward(images) * weights[:, None]

    weights = torch.tensor([1.0, -2.0, 3.0])
    got = cams(Weighted(), (images, weights), "features", method="scorecam", target=1)
    alone = [
        cams(Weighted(), (images[i : i + 1], weights[i : i + 1]), "features", method="scorecam", target=1)
        for i in range(3)
    ]
    assert relative_error(got, torch.cat(alone)).max() <= 1e-5


def test_no_gradient_is_needed(images: Tensor) -> None:
    class Cut(Net):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.features(self.stem(images).relu()).detach()
            return self.fc(maps.relu().mean((2, 3)))

    for method in ("scorecam", "ablationcam", "eigencam"):
        result = compute_cam(Cut(), images, "features", method=method)
        assert set(result.health["features"].state) == {"ok"}
        assert torch.equal(result.cams["features"], cams(Net(), images, "features", method=method))


def test_targets_of_pixels_stay_on_their_pixels(images: Tensor) -> None:
    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.features(images).relu())

    model = Segmenter().eval()
    target = {"segmentation": 2}
    got = cams(model, images, "features", method="ablationcam", target=target)
    with torch.no_grad():
        activation, logits = model.features(images), model(images)
        region = logits.argmax(1) == 2
        score = (logits[:, 2] * region).sum((1, 2))
        weights = []
        for channel in range(5):
            changed = activation.clone()
            changed[:, channel] = 0
            weights.append((score - (model.head(changed.relu())[:, 2] * region).sum((1, 2))) / score.abs())
        expected = torch.einsum("kn,nkhw->nhw", torch.stack(weights), activation).clamp(min=0)
    assert relative_error(got, expected).max() <= 1e-5


@pytest.mark.parametrize("target", ["reconstruction"])
def test_targets_that_cannot_be_scored_again_are_refused(target: str, images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    with pytest.raises(ValueError, match="'reconstruction error' cannot be scored in changed images"):
        compute_cam(model, images, "0", method="scorecam", target=target)


def test_samples_that_depend_on_each_other_are_refused(images: Tensor) -> None:
    class Coupled(Net):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits - logits.mean(0)

    with pytest.raises(ValueError, match="the samples of a batch depend on each other"):
        compute_cam(Coupled(), images, method="ablationcam")


def test_volumes_and_signals(images: Tensor) -> None:
    for convolution, given in ((nn.Conv1d, images[:, :, 0]), (nn.Conv3d, images[:, :, None].repeat(1, 1, 4, 1, 1))):
        torch.manual_seed(0)
        model = nn.Sequential(convolution(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(2))
        model = nn.Sequential(*model, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
        for method in ("scorecam", "ablationcam", "smooth_gradcam", "eigencam"):
            assert cams(model, given, "1", method=method).shape == (3, *given.shape[2:])


# Smooth


def test_smooth_is_the_mean_over_noisy_copies(images: Tensor) -> None:
    for formula in (gradcam, layercam):
        method = Smooth(FormulaMethod("base", formula), samples=5, noise=0.2)
        got = cams(Net(), images, "features", method=method, target=1)
        reach = images.flatten(1).amax(1) - images.flatten(1).amin(1)
        maps = []
        for number in range(5):
            noise = torch.empty_like(images).normal_(generator=torch.Generator().manual_seed(number))
            noisy = images + noise * 0.2 * reach[:, None, None, None]
            maps.append(cams(Net(), noisy, "features", method=as_method(formula), target=1))
        assert relative_error(got, torch.stack(maps).mean(0)).max() <= 1e-5


# Attention


class Block(nn.Module):
    """A transformer's block that keeps its attention."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp, self.how = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()), how
        self.multi = nn.MultiheadAttention(8, 2, batch_first=True)
        self.kept: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attend(self.norm(tokens))
        return tokens + self.mlp(tokens)

    def attend(self, tokens: Tensor) -> Tensor:
        if self.how.startswith("module"):
            return self.multi(tokens, tokens, tokens, need_weights=self.how == "module with weights")[0]
        if self.how == "kept":  # as the module does it, in steps
            weight, bias = self.multi.in_proj_weight, self.multi.in_proj_bias
            query, key, value = (self.heads(part) for part in F.linear(tokens, weight, bias).chunk(3, -1))
        else:
            query, key, value = (self.heads(part) for part in self.qkv(tokens).chunk(3, -1))
        if self.how == "fused":
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            self.kept = (query @ key.transpose(2, 3) / 2).softmax(-1)
            if self.kept.requires_grad:
                self.kept.retain_grad()
            out = self.kept @ value
        merged = out.transpose(1, 2).flatten(2)
        return self.multi.out_proj(merged) if self.how == "kept" else self.proj(merged)

    def heads(self, part: Tensor) -> Tensor:
        return part.unflatten(2, (2, 4)).transpose(1, 2)


class Transformer(nn.Module):
    """Patches, three blocks, and a head on the class token or on the mean."""

    def __init__(self, how: str, *, class_token: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.class_token = nn.Conv2d(3, 8, 4, stride=4), class_token
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(*(Block(how) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token:
            tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens))
        return self.head(tokens[:, 0] if self.class_token else tokens.mean(1))


def rollout(how: str, images: Tensor, target: int, class_token: bool) -> Tensor:
    """Chefer et al., equations 5 and 6, by what the blocks have kept."""
    model = Transformer(how, class_token=class_token)
    model(images)[:, target].sum().backward()
    kept = [block.kept for block in model.blocks]
    count = kept[0].shape[-1]
    relevance = torch.eye(count).expand(len(images), -1, -1)
    for weights in kept:
        relevance = relevance + (weights.grad * weights).clamp(min=0).mean(1) @ relevance
    relevance = relevance - torch.eye(count)
    of_cells = relevance[:, 0, 1:] if class_token else relevance.mean(1)
    return of_cells.unflatten(1, (4, 4)).detach()


@pytest.mark.parametrize("class_token", [True, False], ids=["class token", "mean"])
@pytest.mark.parametrize(
    ("how", "as_kept"),
    [("eager", "eager"), ("fused", "eager"), ("module", "kept"), ("module with weights", "kept")],
)
def test_gradient_rollout_is_the_papers_equation(how: str, as_kept: str, class_token: bool) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = rollout(as_kept, images, 3, class_token)
    with torch.no_grad():
        model = Transformer(how, class_token=class_token)
        got = cams(model, images, "blocks.1", method="gradient_rollout", target=3)
    assert relative_error(got, expected).max() <= 1e-5


def test_gradient_rollout_says_what_is_missing(images: Tensor) -> None:
    with pytest.raises(ValueError, match="the layer 'features' returns no tokens but channels first"):
        compute_cam(Net(), images, "features", method="gradient_rollout")

    class Mixer(Transformer):
        def __init__(self) -> None:
            super().__init__("eager")
            self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    with pytest.raises(ValueError, match=r"needs self-attention over the 17 tokens .* attention was seen over: none"):
        compute_cam(Mixer(), torch.randn(2, 3, 16, 16), "blocks.0", method="gradient_rollout")


# Peers, where they are right: rectified activations, a score above 0


def test_agreement_with_grad_cam(images: Tensor) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = Net(act=True).eval()
    with torch.no_grad():
        target = int(model(images)[0].argmax())
        assert (model(images)[:, target] > 0).all()
    for method, kind in (
        ("scorecam", peers.ScoreCAM),
        ("ablationcam", peers.AblationCAM),
        ("gradcam_elementwise", peers.GradCAMElementWise),
    ):
        explainer = kind(model=model, target_layers=[model.act])
        if method == "ablationcam":  # its copy of the layer is not put back into a model with custom attributes
            explainer.batch_size = 6
        peer = explainer(images, [ClassifierOutputTarget(target)] * 3)
        ours = compute_cam(model, images, "act", method=method, target=target).heatmaps()["act"].numpy()
        # It scales each map by its least and its largest value, before and after it is enlarged.
        floor = ours.min(axis=(1, 2), keepdims=True)
        scaled = (ours - floor) / (ours.max(axis=(1, 2), keepdims=True) - floor)
        assert np.abs(scaled - peer).max() < 0.05, method


def test_agreement_with_torchcam(images: Tensor) -> None:
    methods = pytest.importorskip("torchcam.methods")
    model = Net(act=True).eval()
    with methods.ScoreCAM(model, "act") as extractor, torch.no_grad():
        peer = extractor([2, 2, 2], model(images))[0]
    ours = cams(model, images, "act", method="scorecam", target=2)
    ours = (ours - ours.amin((1, 2), keepdim=True)) / (
        ours.amax((1, 2), keepdim=True) - ours.amin((1, 2), keepdim=True)
    )
    # It scales a mask before it is enlarged; the paper, and we, do so afterwards.
    torch.testing.assert_close(ours, peer, rtol=0, atol=5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("how", ["eager", "fused", "module"])
def test_gradient_rollout_on_a_gpu(how: str) -> None:
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = cams(Transformer(how), images, "blocks.1", method="gradient_rollout", target=3)
    got = cams(Transformer(how).cuda(), images, "blocks.1", method="gradient_rollout", target=3)
    assert got.is_cuda
    assert relative_error(got.cpu(), expected).max() <= 1e-3
