"""How much callers may use, counted in memory or in Redis."""
