"""The other side: choosing an endpoint, its connections, and the protocol spoken with it."""
