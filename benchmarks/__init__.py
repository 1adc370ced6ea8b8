"""Measurements of the whole and of its parts, beside the limits of the machine."""
