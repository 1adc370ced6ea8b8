"""Releases: which version answers whom, changed while everything goes on."""
