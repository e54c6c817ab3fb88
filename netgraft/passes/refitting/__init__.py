"""Layer-wise refit: every target layer by ridge regression onto what its source layer makes of the same images."""
