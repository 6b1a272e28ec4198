"""What workers and replicas share. In this version nothing beyond the counters of `observe`."""
