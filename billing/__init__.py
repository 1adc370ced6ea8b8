"""Usage events in; rated, closed, proven bills and the reports on them out."""
