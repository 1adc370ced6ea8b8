"""The ground that every part of Tallybook stands on, and the command line that joins them."""
