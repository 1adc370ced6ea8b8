"""Who may ask: keys, grants, credit and idempotent requests."""
