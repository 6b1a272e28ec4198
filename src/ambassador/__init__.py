"""The ambassador, a smart HTTP proxy: the map of its code.

The life of a request
 1. A client connects. The listening socket belongs to the supervisor (`control/slots.py`); a worker accepts
    (`proxy/listener.py`) and gives the connection a coroutine of its own. Where TLS is spoken, with clients or with an
    upstream, `proxy/tls_socket.py` takes the socket's place, with its contract: nothing else knows the difference. The
    contexts, and whether their files have changed, are the business of `proxy/tls.py`.
 2. That coroutine is driven by the lane (`proxy/lane.py`): the worker's reactor, and the only thing that it awaits.
 3. Bytes become a request: `proxy/http1.py` reads, `proxy/http1_requests.py` parses, `proxy/fields.py` sorts out the
    header fields that the proxy itself must understand. The request is a record of `messages.py`. A plain one, as
    most are, takes the way of `proxy/express.py`: steps 4 to 12 in one function, which hands over to step 4 wherever
    anything is not plain.
 4. `proxy/exchange.py` takes over: one request and its answer. The target is normalised (`proxy/path.py`), the
    client's address and the `via` chain are settled (`proxy/forwarding.py`), request and trace get their ids
    (`observe/trace.py`).
 5. Who asks, where the config has `clients`: `proxy/clients/who.py` judges what the request proves (a module for each
    way; for tokens `verdicts.py`, by `proxy/jose.py` with the keys that `control/key_sets.py` fetches). Then the route:
    `proxy/routing.py` finds the first that matches, in a table made when the config was loaded. What it gives is a
    `RoutePlan` (`proxy/plan.py`): bound functions and numbers, nothing left to look up.
 6. ADMIT (`proxy/admit.py`): whether the client may call at all (`proxy/policies/access.py`), then hooks that may
    answer at once: rate limits (`limit.py`, their keys in `limit_keys.py`, who waits in `limit_queue.py`), faults on
    purpose (`fault.py`), permits to be in progress (`concurrency.py`, held until the answer has ended), the answers of
    requests that are repeated with their key (`idempotency.py`), then `redirect.py`, `respond.py`. One that must wait
    gives a coroutine, which rests by the request's `waiter` (`messages.py`).
 7. REPEAT: an attempt (`proxy/attempt.py`), and more (`proxy/attempts.py`) while `proxy/policies/retry.py` allows.
    Everything in 8 to 10 is done for each. None begins that is sure not to end in time (`proxy/soonest.py`). Where
    `proxy/policies/hedge.py` says that one takes long, a second runs beside it (`proxy/race.py`). Outside of it all,
    `proxy/policies/cache.py` gives earlier answers again and joins identical requests (`proxy/shelf.py` keeps the
    answers, `proxy/freshness.py` has the rules, `proxy/changes.py` tells all workers what holds no more), and
    `fallback.py` says what is answered when all attempts failed.
 8. An endpoint of the upstream (`proxy/upstream/upstream.py`) is picked: one of those in use (`tiers.py`), as
    `balance` says (`balance.py`, `ring.py`). A connection is taken from its pool (`pool.py`, `endpoint.py`), or
    opened (`connect.py`), where `proxy/egress.py` lets it be, through an egress proxy if there is one (`via.py`,
    `greeting.py`; the service's own calls go by `passage.py`). Breakers and cool-downs may refuse the attempt
    (`proxy/policies/breaker.py`, `cooldown.py`; what an upstream asks for is read by `retry_after.py`). All replicas
    share a circuit (`state/circuit.py`); a worker's view of it is `state/known_circuit.py`, and what it lets through,
    tells and decides by itself `state/gate.py`;
    `proxy/breakers.py` connects the two. Directly before the first byte the upstream's own quota is charged
    (`proxy/policies/limit.py` again).
 9. SHAPE: the outgoing head is made: what passes, what the proxy adds, what the route changes
    (`proxy/policies/headers.py`, `rewrite.py`, with values from `proxy/template.py`; `proxy/framing.py` says what
    they may not touch). Last of all the upstream's credential is put on (`proxy/credentials/`, a file for each kind),
    in plaintext only for this host (`proxy/loopback.py`).
10. It is sent and the answer's head awaited (`proxy/transfer.py`, which moves the bodies both ways meanwhile and keeps
    the time; the syntax is the connection's, `proxy/upstream/h1.py`, by `http1_answers.py`). Large bodies are not even
    copied (`proxy/splice.py`). Both sides write through `proxy/wire.py`, which is where back pressure is. A client that
    is slower than `min_rate` is cut (`proxy/pace.py`).
11. Where the route looks into answers (`proxy/content.py`), or keeps them for repeats, the beginning of the body is
    awaited too. Then the answer's head is shaped likewise and passed on, and its body. An error before the head
    becomes a problem document (`errors.py`, `proxy/problem.py`); after it, the client's connection is cut.
12. When the body has ended the outcome is settled: counters in shared memory (`observe/metrics.py`), a line of the
    access log (`observe/access_log.py`). The connection goes back to its pool, and the client's waits for its next
    request.

Around it
- `cli/` is the command, a module for each subcommand. `control/service.py` starts the supervisor
  (`control/supervisor.py`), which keeps the workers (`crew.py`) and what must outlive them (`pages.py`, `limits.py`,
  `deployment.py`), reloads (`reload.py`, with a process that checks the
  config: `checker.py`) and serves the admin API (`control/admin/`).
- `control/worker.py` builds a worker's parts, and is the only place that does. What it knows beyond the life of one
  table is in `proxy/lasting.py`.
- What workers and replicas share is in stores (`state/protocol.py` says what one can be asked). A policy asks through
  a `state/scope.py` and is answered later: by the supervisor's store (`state/local_scope.py`, a socket), or by the
  fleet's (`state/remote_scope.py`, threads). `control/scopes.py` opens both and drives them with the lane. Requests
  are decided from what the worker has in hand; none waits for a store longer than `state.max_wait`. For limits that is
  `state/holding.py` (tokens leased from a `state/bucket.py`) and `state/account.py` (what decides while the store is
  late or away). While replicas have different configs the lower limit holds: `state/rollout.py`, by `state/accord.py`.
  Permits to be in progress are divided by the replica's store (`state/permits.py`, their number found by
  `state/gradient.py`) and held in `state/allotment.py`.
- Tokens that are fetched for an upstream: `proxy/tokens/flight.py` says when, and who of all that share a store;
  `keeper.py` drives it and wakes who waits, `register.py` knows them all; `control/tokens.py` asks the token service.
- A worker that is short of time, memory or descriptors refuses a part of what comes, before step 6
  (`proxy/overload.py`).
- Which endpoints there are, where the config does not say: the supervisor finds them (`control/discovery/directory.py`,
  with a module for each kind of source) and tells the workers (`Table.take_found`). Names' addresses go the same way.
- Certificates and keys: `pem_files.py` reads the files, all of them, `certificate.py` what stands in a certificate;
  `control/certificates.py` looks each second, in every process, whether they have changed. What is wrong with them is
  told at their places by `config/certificates.py`. Which sets of keys cannot be read: `control/key_set_status.py`.
  What files, secrets and sets of keys held when they were good, for workers that start while they are not:
  `control/last_good.py`.
- Which endpoints are well: the supervisor checks them (`control/health.py`, rules in `proxy/upstream/health.py`), the
  workers leave out those that are worse than the others (`proxy/upstream/outlier.py`).
- Secrets are read by reference (`secret.py`), again when they change; processes that hold some keep to themselves
  (`control/host.py`, where `config/secrecy.py` says so), their children from the start (`control/entry.py`).
- `config/` turns files into a `schema.Config`: `compose.py` makes nodes of YAML, `read.py` reads them by the schema
  (the texts in them by `scalars.py`, as `units.py`, `words.py` and `addresses.py` say) into parts that know their
  places (`part.py`), `load.py` puts the whole together. It warns (`check.py`), explains (`explain.py`, each policy in
  `explain_lines.py`), and compiles it to the table of step 5 (`compile.py`, `endpoints.py`). A policy's own settings
  are a Struct in the policy's file; `settings.py` has the vocabulary.

Import rules, which `tox -e lint` checks
- cli > control > config > proxy > state > observe > settings, messages, errors, printable, secret, extras,
  pem_files, certificate > files:
  never upwards.
- Within the data plane only `proxy/lane.py` imports trio. A policy imports no other policy.
- Each third-party library has one door: httptools in `proxy/http1_requests.py` and `http1_answers.py`, h11 in
  `control/admin/http.py`, httpcore in `control/http_client.py`, PyYAML in `config/compose.py`, dnspython in
  `control/discovery/`, re2 in `proxy/path_regex.py`, PyJWT in `proxy/jose.py`, redis-py in `state/redis_nodes.py`.
"""

__version__ = "0.1.0"
