"""Evidence that a file is what it says: parity, receipt, rebuilding, checks."""
