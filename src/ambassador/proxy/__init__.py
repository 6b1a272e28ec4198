"""The data plane: what a request meets, in the order of the map (`ambassador.__doc__`). No trio but in `lane`."""
