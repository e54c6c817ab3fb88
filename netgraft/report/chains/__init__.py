"""What ``inspect-chains`` shows of architectures, one format in one file."""
