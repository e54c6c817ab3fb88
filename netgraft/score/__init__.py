"""Does an initialisation help? A verdict without training."""
