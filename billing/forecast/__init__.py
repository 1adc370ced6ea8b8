"""The forecast of the next quarter, and how wrong it was on weeks held back."""
