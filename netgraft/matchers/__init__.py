"""Which source layer goes to which target layer. One file each; the folder is the list of matchers.

A matcher is a frozen dataclass called with the source's and the target's ``LayerGraph`` and answers with a ``Pairing``
of kernel layers: every target layer at most once, and a reason for each target kernel left without a partner. It
looks at graphs only, never at weights, and its answer does not depend on the names of layers.
"""
