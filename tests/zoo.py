"""Networks as people train them: all classifiers of torchvision, one small member of each of timm's families, and the
image classifiers of transformers, all with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import timm
import torchvision
from torch import nn

CLASSES = 7
# One of each family (the module it is defined in, and the first word of its name) below 45 million weights.
TIMM = """
botnet26t_256 eca_botnext26ts_256 halo2botnet50ts_256 halonet_h1 haloregnetz_b lambda_resnet26t
lamhalobotnet50ts_256 sebotnet33ts_256 sehalonet33ts bat_resnext26ts eca_resnext26ts gcresnet33ts gcresnext26ts
gernet_s mobileone_s1 regnetz_b16 repvgg_a0 resnet32ts resnext26ts seresnet33ts seresnext26ts test_byobnet
cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto test_convnext
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspdarknet53 cspresnet50 cspresnext50 darknet17
darknetaa53 sedarknet21 cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 densenetblur121d dla46x_c
dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientnetv2_rw_t
fbnetc_100 gc_efficientnetv2_rw_t mixnet_s mnasnet_small mobilenet_edgetpu_100 mobilenetv2_035 semnasnet_050
spnasnet_100 test_efficientnet tf_mixnet_s tinynet_e efficientvim_m1 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
ghostnet_050 ghostnetv3_050 hardcorenas_b hgnet_tiny hgnetv2_b0 hiera_tiny_224 hieradet_small sam2_hiera_tiny
hrnet_w18_small iformer_t inception_next_atto inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
mambaout_femto test_mambaout coatnet_pico_rw_224 coatnext_nano_rw_224 maxvit_pico_rw_256
maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 test_coatnet caformer_s18 convformer_s18 poolformer_s12
poolformerv2_s12 gmixer_12_224 gmlp_ti16_224 mixer_s16_224 resmlp_12_224 fbnetv3_b lcnet_035
mobilenetv3_small_050 tf_mobilenetv3_small_075 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small
eca_nfnet_l0 nf_regnet_b0 nfnet_l0 test_nfnet pit_ti_224 pvt_v2_b0 rdnet_tiny regnetv_040 regnetx_002
regnety_002 regnetz_005 repghostnet_050 repvit_m1 res2next50 resnest14d ecaresnet26t ecaresnetlight
ecaresnext26t_32x4d resnet10t resnetaa34d resnetblur18 resnetrs50 resnext50_32x4d seresnet18 seresnetaa50d
seresnext26t_32x4d test_resnet resnetv2_18 rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18 sequencer2d_s
shvit_s1 skresnet18 skresnext50_32x4d starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
visformer_tiny flexivit_small test_vit vit_dwee_patch16_reg1_gap_256 vit_tiny_r_s16_p8_224 test_vit_relpos
vit_srelpos_small_patch16_224 vitamin_small_224 volo_d1_224 eca_vovnet39b ese_vovnet19b_slim_dw vovnet39a
legacy_xception xception41p xcit_nano_12_p8_224
"""
# They check the pretrained weights, or insist on a size.
TORCHVISION_OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
TORCHVISION_SIZES = {"inception_v3": 299}


class Network(NamedTuple):
    """Where it comes from, its name there, how it is made, and the height and width of its images."""

    source: str
    name: str
    make: Callable[[], nn.Module]
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.source}-{self.name}"


def of_torchvision() -> Iterator[Network]:
    for name in torchvision.models.list_models(module=torchvision.models):
        options = TORCHVISION_OPTIONS.get(name, {})
        make = functools.partial(torchvision.models.get_model, name, weights=None, num_classes=CLASSES, **options)
        side = TORCHVISION_SIZES.get(name, 224)
        yield Network("torchvision", name, make, (side, side))


def of_timm() -> Iterator[Network]:
    known = set(timm.list_models())  # older versions have fewer
    for name in TIMM.split():
        if name in known:
            _, height, width = timm.models.get_pretrained_cfg(name).input_size
            make = functools.partial(timm.create_model, name, pretrained=False, num_classes=CLASSES)
            yield Network("timm", name, make, (height, width))


def of_transformers() -> Iterator[Network]:
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    except ImportError:
        return
    for configuration, classes in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items():
        if configuration.__name__ == "ShieldGemma2Config":  # four billion weights, and it takes text
            continue
        for kind in classes if isinstance(classes, (list, tuple)) else [classes]:
            try:
                config = configuration(num_labels=CLASSES)
            except Exception:  # it needs another package, or a file
                continue
            vision = getattr(config, "vision_config", config)
            sides = getattr(vision, "image_size", None) or 224
            height, width = sides if isinstance(sides, (list, tuple)) else (sides, sides)
            yield Network("transformers", kind.__name__, functools.partial(kind, config), (height, width))


@functools.cache
def networks() -> tuple[Network, ...]:
    return (*of_torchvision(), *of_timm(), *of_transformers())
