"""Closed bills for other programs: FOCUS and Beancount."""
