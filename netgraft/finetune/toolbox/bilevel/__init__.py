"""Learning how to transfer: steps of the target that depend on weights which learn from where the steps lead."""
