"""Model references to models: built, filled with their weights, normalised as they expect. timm and torchvision are
imported only when a reference needs them."""
