"""Small configurations of architectures that torchvision and timm both have."""

import timm
import torchvision.models as tv
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.convnext import CNBlockConfig

# torchvision gives these batch norms an epsilon of 0.001, timm one of 0.00001 unless it is told otherwise.


def tv_mobilenet_v3_small():
    return tv.mobilenet_v3_small()


def timm_mobilenet_v3_small():
    return timm.create_model("mobilenetv3_small_100", bn_eps=0.001)


def tv_mobilenet_v3_large():
    return tv.mobilenet_v3_large()


def timm_mobilenet_v3_large():
    return timm.create_model("mobilenetv3_large_100", bn_eps=0.001)


def tv_efficientnet_v2_s():
    return tv.efficientnet_v2_s()


def timm_efficientnet_v2_s():
    return timm.create_model("efficientnetv2_s", bn_eps=0.001)


def tv_inception_v3():
    return tv.inception_v3(aux_logits=False, init_weights=False, transform_input=False)


def timm_inception_v3():
    return timm.create_model("inception_v3")


DENSE = {"growth_rate": 8, "block_config": (2, 3, 2, 2), "num_classes": 10}


def tv_densenet():
    return tv.DenseNet(num_init_features=16, **DENSE)


def timm_densenet():
    return DenseNet(**DENSE)


WIDTHS, DEPTHS = (8, 12, 16, 24), (1, 1, 2, 1)


def tv_convnext():
    blocks = [CNBlockConfig(i, o, d) for i, o, d in zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS, strict=True)]
    return tv.ConvNeXt(blocks, num_classes=10)


def timm_convnext():
    return ConvNeXt(num_classes=10, depths=DEPTHS, dims=WIDTHS)


def tv_vit():
    return tv.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48, num_classes=10
    )


def timm_vit():
    return VisionTransformer(img_size=32, patch_size=8, depth=2, num_heads=3, embed_dim=24, mlp_ratio=2, num_classes=10)


def tv_swin():
    return tv.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=10
    )


def timm_swin():
    return SwinTransformer(
        img_size=64, patch_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=10
    )
