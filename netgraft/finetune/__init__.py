"""Fine-tuning: methods that yield updates, and the engine that performs them. Importing this imports no torch."""
