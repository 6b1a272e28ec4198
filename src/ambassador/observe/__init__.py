"""What is told about requests: counters, the access log, and the trace they belong to."""
