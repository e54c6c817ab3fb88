"""Channel groups: which axes of which tensors must share one index map."""
