"""Chains pinned in a lock file, and what has changed since."""
