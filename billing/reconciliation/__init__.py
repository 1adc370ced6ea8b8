"""What was metered against what the model servers counted themselves."""
