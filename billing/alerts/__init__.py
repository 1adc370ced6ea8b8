"""Alerts: rules look at usage, episodes remember, notifications tell."""
