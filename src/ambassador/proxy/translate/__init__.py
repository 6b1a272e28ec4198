"""Translation between the formats of callers and upstreams, one file each, sans I/O. None in this version."""
