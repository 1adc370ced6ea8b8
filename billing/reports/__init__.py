"""The report of a day: its numbers, its charts, its sentences."""
