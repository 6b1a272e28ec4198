"""What runs a host's ambassador: the supervisor, its workers, reload, drain, and the admin API.

Two kinds of process. The supervisor (`supervisor.py`) owns everything that must outlive a worker: listening sockets
(`slots.py`), workers (`crew.py`, `incarnation.py`), the pages their counters are in (`pages.py`), the admin API
(`admin/`) and the control socket. A worker (`worker.py`) serves clients and obeys orders (`orders.py`, `duties.py`).
"""
