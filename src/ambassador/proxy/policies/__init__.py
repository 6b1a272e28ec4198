"""Policies, one file each: its settings as a Struct, and the hook or the decision made from them."""
