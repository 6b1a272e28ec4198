"""How a fleet behaves that shares its state: two replicas of two workers, one Redis, and what may happen to it.

These programs print figures; none is a test that could fail for a slow machine. In the order of a run:

1. `replicas`        starts the replicas, and reads their metrics
2. `witness`         the origin: writes down when each request arrived, and does as it is told to each
3. `driver`          the clients: sends requests at given rates to given workers, whatever comes back (an open loop)
4. `fault_proxy`     stands between the replicas and Redis: delays, swallows, refuses, hangs
5. `apart`           each of the three in a process of its own
6. `windows`         the arithmetic: worst windows, percentiles, requests in flight, when a rule was first met
7. `bench`           all of these together, as every scenario needs them
8. `limit_accuracy`, `breaker_trip`, `redis_loss`, `redis_slow`    the scenarios
9. `findings`        tables, JSON, and what should have held
"""
