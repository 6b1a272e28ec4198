"""Who calls: the ways to prove it, a module each with its own settings, and `who.py`, which asks them all."""
