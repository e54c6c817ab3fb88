"""Operators that turn one weight tensor into another of the wanted shape: one operator per file."""
