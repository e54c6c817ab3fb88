"""Pictures: labelled, unlabelled, and made by generators."""
