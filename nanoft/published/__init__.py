"""Weights as others publish them, in and out."""
