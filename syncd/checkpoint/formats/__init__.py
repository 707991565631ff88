"""One file for each kind of checkpoint; registry.py asks them in order, the surest first."""
