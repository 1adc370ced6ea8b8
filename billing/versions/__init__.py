"""Versions of a model side by side: tokens, answer times, cost and quality."""
