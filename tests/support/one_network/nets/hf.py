"""Small configurations of transformers' image models, and of timm's and torchvision's for the same networks."""

import timm
import transformers as hf
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import VisionTransformer as TorchvisionViT

LABELS = {"num_labels": 10}
TRANSFORMER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 3, "embed_dim": 24, "mlp_ratio": 2, "num_classes": 10}


def hf_vit():
    return hf.ViTForImageClassification(hf.ViTConfig(**TRANSFORMER, **LABELS))


def timm_vit():
    return VisionTransformer(**VIT)


def tv_vit():
    return TorchvisionViT(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=3,
        hidden_dim=24,
        mlp_dim=48,
        num_classes=10,
    )


def hf_deit():
    return hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**TRANSFORMER, **LABELS))


def timm_deit():
    return VisionTransformerDistilled(**VIT)


def hf_dinov2():
    """The norm, and the class token's numbers, which timm's network without a head also returns."""
    return Pooled(hf.Dinov2Model(hf.Dinov2Config(**_DINO)))


def timm_dinov2():
    return VisionTransformer(**VIT | {"num_classes": 0}, init_values=1e-5)


def hf_dinov2_gated():
    return Pooled(hf.Dinov2Model(hf.Dinov2Config(**_DINO | {"mlp_ratio": 4}, use_swiglu_ffn=True)))


def timm_dinov2_gated():
    return VisionTransformer(
        **VIT | {"num_classes": 0, "mlp_ratio": 128 / 24}, init_values=1e-5, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU
    )


_DINO = {key: value for key, value in TRANSFORMER.items() if key != "intermediate_size"} | {"mlp_ratio": 2}


class Pooled(nn.Module):
    """The pooled output alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).pooler_output


def hf_beit():
    config = hf.BeitConfig(
        **TRANSFORMER | {"layer_norm_eps": 1e-6}, **LABELS, use_relative_position_bias=True, layer_scale_init_value=0.1
    )
    return hf.BeitForImageClassification(config)


def timm_beit():
    return Beit(**VIT, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)


# ----------------------------------------------------------------------------------------------------------- ConvNets


def hf_resnet():
    config = hf.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 24, 32, 40], depths=[1, 2, 1, 1], layer_type="basic", **LABELS
    )
    return hf.ResNetForImageClassification(config)


def timm_resnet():
    return ResNet(BasicBlock, (1, 2, 1, 1), num_classes=10, channels=(64, 24, 32, 40))


def hf_resnet_bottleneck():
    return hf.ResNetForImageClassification(
        hf.ResNetConfig(
            embedding_size=64, hidden_sizes=[64, 96, 128, 160], depths=[1, 2, 1, 1], layer_type="bottleneck", **LABELS
        )
    )


def timm_resnet_bottleneck():
    return ResNet(Bottleneck, (1, 2, 1, 1), num_classes=10, channels=(16, 24, 32, 40))


def hf_convnext():
    return hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_norm_eps=1e-6, **LABELS)
    )


def timm_convnext():
    return ConvNeXt(num_classes=10, depths=(1, 1, 2, 1), dims=(8, 12, 16, 24))


def hf_convnext_v2():
    return hf.ConvNextV2ForImageClassification(
        hf.ConvNextV2Config(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], layer_norm_eps=1e-6, **LABELS)
    )


def timm_convnext_v2():
    return ConvNeXt(num_classes=10, depths=(1, 1, 2, 1), dims=(8, 12, 16, 24), use_grn=True, ls_init_value=None)


def hf_regnet():
    return hf.RegNetForImageClassification(
        hf.RegNetConfig(
            embedding_size=32, hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 6], groups_width=8, **LABELS
        )
    )


def timm_regnet():
    return timm.create_model("regnety_004", num_classes=10)


def hf_mobilenet_v2():
    return hf.MobileNetV2ForImageClassification(
        hf.MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True, **LABELS)
    )


def timm_mobilenet_v2():
    return timm.create_model("mobilenetv2_100", num_classes=10)


def hf_mobilenet_v1():
    return hf.MobileNetV1ForImageClassification(
        hf.MobileNetV1Config(tf_padding=False, layer_norm_eps=1e-5, depth_multiplier=1.0, **LABELS)
    )


def timm_mobilenet_v1():
    return timm.create_model("mobilenetv1_100", num_classes=10)


def hf_efficientnet():
    return hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(
            width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=64, pooling_type="mean", **LABELS
        )
    )


def timm_efficientnet():
    return timm.create_model("tf_efficientnet_b0", num_classes=10)


# --------------------------------------------------------------------------------------------- hierarchies of attention


def hf_swin():
    return hf.SwinForImageClassification(
        hf.SwinConfig(image_size=64, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4, **LABELS)
    )


def timm_swin():
    return SwinTransformer(
        img_size=64, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=10
    )


def hf_pvt_v2():
    return hf.PvtV2ForImageClassification(
        hf.PvtV2Config(
            image_size=64,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 2, 3, 4],
            mlp_ratios=[2, 2, 2, 2],
            sr_ratios=[8, 4, 2, 1],
            layer_norm_eps=1e-5,
            **LABELS,
        )
    )


def timm_pvt_v2():
    return PyramidVisionTransformerV2(
        num_classes=10,
        depths=(1, 1, 1, 1),
        embed_dims=(8, 16, 24, 32),
        num_heads=(1, 2, 3, 4),
        mlp_ratios=(2, 2, 2, 2),
        norm_layer=nn.LayerNorm,
    )


def hf_mobilevit():
    return hf.MobileViTForImageClassification(
        hf.MobileViTConfig(
            hidden_sizes=[64, 80, 96],
            neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
            expand_ratio=2.0,
            image_size=64,
            **LABELS,
        )
    )


def timm_mobilevit():
    return timm.create_model("mobilevit_xxs", num_classes=10)
