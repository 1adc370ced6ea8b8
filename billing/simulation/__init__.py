"""A made-up history of usage, brought in the way real usage comes."""
