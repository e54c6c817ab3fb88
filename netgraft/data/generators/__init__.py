"""Generators of synthetic images: one per file.

A generator is a frozen dataclass whose fields are its options; called with a count, a size (channels, height, width)
and a ``torch.Generator`` it returns images ``[count, channels, height, width]``, float32 in [0, 1], on the generator's
device. The same generator state gives the same bytes on the same kind of machine, whatever the number of threads.
"""
