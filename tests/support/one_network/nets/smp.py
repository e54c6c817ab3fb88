"""Encoders of segmentation_models_pytorch, and timm's and transformers' trunks for the same networks."""

import segmentation_models_pytorch as smp
import timm
from torch import nn
from torchvision.models import densenet121
from transformers import SegformerConfig, SegformerModel


class Last(nn.Module):
    """The last of a network's lists of features."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[-1]


class Features(Last):
    """All of them but the image itself."""

    def forward(self, x):
        return self.net(x)[1:]


def encoder(name):
    return Last(smp.encoders.get_encoder(name, weights=None))


def trunk(name):
    return timm.create_model(name, num_classes=0, global_pool="")


def smp_resnet18():
    return encoder("resnet18")


def timm_resnet18():
    return trunk("resnet18")


def smp_resnet18_features():
    return Features(smp.encoders.get_encoder("resnet18", weights=None))


def timm_resnet18_features():
    return timm.create_model("resnet18", features_only=True)


def smp_mobilenet_v2():
    return encoder("mobilenet_v2")


def timm_mobilenet_v2():
    return trunk("mobilenetv2_100")


def smp_efficientnet_b0():
    return encoder("efficientnet-b0")


def timm_efficientnet_b0():
    return timm.create_model("tf_efficientnet_b0", features_only=True, out_indices=(4,))


def smp_densenet121():
    return encoder("densenet121")


def tv_densenet121():
    """timm's trunk ends in an activation, which neither of these has."""
    return densenet121().features


def smp_se_resnet50():
    return encoder("se_resnet50")


def timm_se_resnet50():
    return trunk("legacy_seresnet50")


def smp_dpn68():
    return encoder("dpn68")


def timm_dpn68():
    return trunk("dpn68")


def smp_xception():
    return encoder("xception")


def timm_xception():
    net = trunk("legacy_xception")
    net.act4 = nn.Identity()  # the encoder has none there, and pads its first two convolutions
    net.conv1.padding = net.conv2.padding = (1, 1)
    return net


def smp_mobileone():
    return encoder("mobileone_s0")


def timm_mobileone():
    return trunk("mobileone_s0")


def with_epsilon(net, eps=1e-6):
    """The two libraries differ in the epsilon of some norms."""
    for layer in net.modules():
        if hasattr(layer, "eps"):
            layer.eps = eps
    return net


def smp_mit():
    return with_epsilon(encoder("mit_b0"))


def hf_mit():
    """SegFormer's encoder."""
    return with_epsilon(LastHidden(SegformerModel(SegformerConfig())))


class LastHidden(Last):
    def forward(self, x):
        return self.net(x).last_hidden_state
