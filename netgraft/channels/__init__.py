"""Which channel is which: groups that move together, index maps, correspondences. Nothing here imports torch."""
