"""Tokens that are fetched from a token service, and kept until shortly before they end. `register.py` is the way in."""
