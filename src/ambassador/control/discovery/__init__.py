"""Where the addresses of upstreams come from."""
