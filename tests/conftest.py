"""Settings of all tests."""

from hypothesis import settings

# No example has a time limit: how long one takes is the machine's doing, and whatever else it does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
