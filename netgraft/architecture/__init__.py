"""What a network is: its graph of layers, and the questions that are asked of it. Nothing here imports torch."""
