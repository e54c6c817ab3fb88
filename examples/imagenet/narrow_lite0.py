"""EfficientNet-Lite0 at three quarters of its width: a network of the source's own family that no hub has."""

from __future__ import annotations

from timm.models.efficientnet import EfficientNet, _gen_efficientnet_lite


def narrow_lite0(num_classes: int = 1000) -> EfficientNet:
    """Logits ``[n, num_classes]`` of images ``[n, 3, h, w]``; the stem and the last features are as wide as Lite0's."""
    options = {"bn_eps": 1e-3, "pad_type": "same", "num_classes": num_classes}
    return _gen_efficientnet_lite("tf_efficientnet_lite0", channel_multiplier=0.75, depth_multiplier=1.0, **options)


narrow_lite0.input_size = (3, 224, 224)
