"""The load test: the ambassador beside Envoy, HAProxy and nginx, each doing the same job on the same machine.

Run from the repository's root; only the standard library is imported here, so any interpreter that runs the
ambassador runs this. In the order of a run:

1. `scenarios`  what is asked of a proxy: which request, how many connections, which routes
2. `origin`     the upstream: one nginx worker on the generator's core
3. `peers/`     one file per proxy: where it is found, its configuration for a scenario, its command line
4. `processes`  starting pinned processes, waiting until they answer, and ending them and all their children
5. `wrk`        the generator (closed loop) and the reading of what it prints
6. `bulk`       a large download beside the generator
7. `idle`       the memory of idle connections
8. `procfs`     CPU time and memory of a process tree, from /proc
9. `compare`    rounds in turns, and one measurement after another
10. `report`    medians, ratios, targets, the table and the JSON
11. `hotspots`  which functions of the worker the time goes to (py-spy, or cProfile)
"""
