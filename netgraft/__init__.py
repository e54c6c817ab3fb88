"""netgraft: pretrained weights for any architecture."""

__version__ = "0.1.0"
