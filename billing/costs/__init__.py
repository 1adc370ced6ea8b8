"""What pools of machines and trainings cost, set against what was billed."""
