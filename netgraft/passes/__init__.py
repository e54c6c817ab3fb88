"""What is done to grafted weights by running the networks: one pass per file."""
