"""Monthly statements: what a month's bills come to, written and mailed."""
