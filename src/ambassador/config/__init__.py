"""The config: its schema, how files are read and checked, and what the data plane is compiled from."""
