-- protocol.Report, Probe, Force and Restore, the same steps as circuit.py.
--
-- KEYS: for each operation the circuit and its reporters. ARGV: the channel, then each operation in msgpack, by whose
-- fields' order this script goes. Only reports come several at a time. Answers msgpack of protocol.Row for each; to a
-- probe, that and 1 if it was granted or counted.
--
-- Nothing here grows with the fleet. How many reporters there are, and how many of them cross a threshold by
-- themselves, is kept as sums over those that reported last in this half of the window, and in the half before; for the
-- latter, by what they will have in view when the next half begins. Only who voted is looked at one by one.
--
-- A circuit is msgpack, an array of the fields named below, with a window in it while it is CLOSED. A reporter is a
-- field of the hash, struct: the half it reported in last, its sums of that half and of the one before, bits.
local CLOSED, OPEN, HALF_OPEN = 0, 1, 2
local SETTLING = 20000
local LATE = 2000000
local WEEK_MS, HOUR_MS = 604800000, 3600000
-- Padded beyond 64 bytes: shorter ones Redis would keep in a list, and search it (16 us more with 64 replicas).
local REPORTER = '<dddddddBxxxxxxxx'
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max

local STATE, EPOCH, SINCE, OPEN_UNTIL, TRIPS = 1, 2, 3, 4, 5
local FORCED, FORCED_UNTIL, BY, REASON = 6, 7, 8, 9
local REQUESTS, FAILURES, SLOW, REPORTERS, FAILING = 10, 11, 12, 13, 14
local OKS, LEASES, WINDOW, VOTES, VOID = 15, 16, 17, 18, 19
-- Of a window: its first report, the sums, when this half and the one before began, tallies, buckets of (start,
-- requests, failures, slow). Tallies, for replicas and for workers: of this half (reporters; crossing by errors, by
-- slowness, by either; the same when the next half begins), of the half before (reporters; by errors, slowness, either).
local FIRST, SUM, HALF, HALF_BEFORE, TALLIES, RING = 1, 1, 5, 6, 6, 29
local TALLY, BEFORE = 11, 7

local channel = ARGV[1]
local breaker, key, reporters_key, circuit, changed, emptied, published

local function new_window()
  local window = {}
  for i = 1, RING - 1 do window[i] = 0 end
  return window
end

-- Probes of this epoch say nothing any more, but are still on their way to the upstream: VOID has them.
local function empty()
  local void, leases = circuit[VOID] or {}, circuit[LEASES] or {}
  for i = 1, #leases do void[#void + 1] = leases[i] end
  circuit[VOID] = void
  circuit[REQUESTS], circuit[FAILURES], circuit[SLOW], circuit[REPORTERS], circuit[FAILING] = 0, 0, 0, 0, 0
  circuit[OKS], circuit[LEASES], circuit[WINDOW], circuit[VOTES] = 0, {}, new_window(), {}
  emptied = true
end

local function change(state)
  circuit[EPOCH] = max(now, circuit[EPOCH] + 1)
  if state ~= circuit[STATE] then
    circuit[STATE] = state
    circuit[SINCE] = now
  end
  circuit[OPEN_UNTIL] = 0
  empty()
  changed, published = true, true
end

local function let_go(state)
  circuit[FORCED], circuit[BY], circuit[REASON], circuit[FORCED_UNTIL] = '', '', '', 0
  change(state)
end

-- Open; the counts say why.
local function trip(rules)
  local requests, failures, slow, reporters, failing =
    circuit[REQUESTS], circuit[FAILURES], circuit[SLOW], circuit[REPORTERS], circuit[FAILING]
  circuit[TRIPS] = circuit[TRIPS] + 1
  change(OPEN)
  circuit[REQUESTS], circuit[FAILURES], circuit[SLOW], circuit[REPORTERS], circuit[FAILING] =
    requests, failures, slow, reporters, failing
  -- Redis gives every script the same random numbers; the microseconds are as good.
  local jitter = 0.9 + 0.2 * (now % 997) / 997
  local open_ms = min(rules[7], rules[6] * 2 ^ min(circuit[TRIPS] - 1, 40))
  circuit[OPEN_UNTIL] = now + floor(open_ms * 1000 * jitter + 0.5)
end

local function load(which)
  key, reporters_key = KEYS[2 * which - 1], KEYS[2 * which]
  changed, emptied, published = false, false, false
  local packed = redis.call('GET', key)
  if packed then
    circuit = cmsgpack.unpack(packed)
  else
    circuit = {CLOSED, 0, 0, 0, 0, '', 0, '', ''}
    empty()
    emptied = false
  end
  if circuit[FORCED_UNTIL] > 0 and now >= circuit[FORCED_UNTIL] then
    let_go(circuit[FORCED] == 'open' and HALF_OPEN or circuit[STATE])
  end
end

-- Write it down and tell who listens; the row.
local function finish()
  local row = cmsgpack.pack({'row', now, circuit[STATE], circuit[EPOCH], circuit[SINCE], circuit[OPEN_UNTIL],
    circuit[TRIPS], circuit[FORCED], circuit[FORCED_UNTIL], circuit[BY], circuit[REASON], circuit[REQUESTS],
    circuit[FAILURES], circuit[SLOW], circuit[REPORTERS], circuit[FAILING]})
  local keep_ms = circuit[EPOCH] > 0 and WEEK_MS or HOUR_MS
  if circuit[FORCED] ~= '' and circuit[FORCED_UNTIL] == 0 then keep_ms = nil end
  if emptied then redis.call('DEL', reporters_key) end
  if changed then
    if keep_ms then
      redis.call('SET', key, cmsgpack.pack(circuit), 'PX', keep_ms)
    else
      redis.call('SET', key, cmsgpack.pack(circuit))
    end
  elseif keep_ms and circuit[EPOCH] > 0 then
    redis.call('PEXPIRE', key, keep_ms)
  end
  if published then publish(channel, 'circuit', breaker, row) end
  return row
end

-- Forget of the window what is over.
local function pass(window, window_us)
  local width = floor(window_us / 10)
  local oldest = now - now % width - window_us
  local first, last = RING, #window
  while first <= last and window[first] <= oldest do
    for i = 1, 3 do window[SUM + i] = window[SUM + i] - window[first + i] end
    first = first + 4
  end
  if first > RING then
    local gone = first - RING
    for i = RING, last do window[i] = window[i + gone] end
    changed = true
  end
  local half_us = floor(window_us / 2)
  local half = now - now % half_us
  if half > window[HALF] then
    local follows = half - window[HALF] <= half_us
    window[HALF_BEFORE] = follows and window[HALF] or 0
    window[HALF] = half
    for tally = TALLIES, TALLIES + TALLY, TALLY do
      local reporters = window[tally + 1]
      for i = 1, 3 do window[tally + BEFORE + 1 + i] = follows and window[tally + 4 + i] or 0 end
      window[tally + BEFORE + 1] = follows and reporters or 0
      for i = 1, 7 do window[tally + i] = 0 end
    end
    changed = true
  end
end

-- Whether sums cross a threshold: bits 1 by errors, 2 by slowness.
local function crosses(rules, requests, failures, slow)
  if requests == 0 then return 0 end
  return (failures / requests >= rules[1] and 1 or 0) + (slow / requests >= rules[2] and 2 or 0)
end

-- Add or take away one reporter, at `tally`, with its bits.
local function count(window, at, bits, by)
  if bits % 2 == 1 then window[at + 1] = window[at + 1] + by end
  if bits >= 2 then window[at + 2] = window[at + 2] + by end
  if bits > 0 then window[at + 3] = window[at + 3] + by end
end

-- Add a report to what its sender reported, and the sender to its tally. `packed`: what there is of it.
local function tell(window, tally, rules, packed, requests, failures, slow)
  local half = window[HALF]
  local last, r, f, s, rb, fb, sb, bits = 0, 0, 0, 0, 0, 0, 0, 0
  if packed then
    last, r, f, s, rb, fb, sb, bits = struct.unpack(REPORTER, packed)
    if last == half then
      window[tally + 1] = window[tally + 1] - 1
      count(window, tally + 1, bits % 4, -1)
      count(window, tally + 4, floor(bits / 4), -1)
    else
      if last > 0 and last == window[HALF_BEFORE] then
        window[tally + BEFORE + 1] = window[tally + BEFORE + 1] - 1
        count(window, tally + BEFORE + 1, floor(bits / 4), -1)
        rb, fb, sb = r, f, s
      else
        rb, fb, sb = 0, 0, 0
      end
      r, f, s = 0, 0, 0
    end
  end
  r, f, s = r + requests, f + failures, s + slow
  local present, coming = crosses(rules, r + rb, f + fb, s + sb), crosses(rules, r, f, s)
  window[tally + 1] = window[tally + 1] + 1
  count(window, tally + 1, present, 1)
  count(window, tally + 4, coming, 1)
  return struct.pack(REPORTER, half, r, f, s, rb, fb, sb, present + 4 * coming)
end

-- Reporters, failing, by errors, by slowness, voters: of replicas (level 0) or workers (level 1).
local function tallied(window, level, window_us)
  local tally = TALLIES + level * TALLY
  local before = tally + BEFORE
  local reporters = window[tally + 1] + window[before + 1]
  local by_errors = window[tally + 2] + window[before + 2]
  local by_slow = window[tally + 3] + window[before + 3]
  local failing = window[tally + 4] + window[before + 4]
  local votes, seen, voters = circuit[VOTES], {}, 0
  for i = 1, #votes, 3 do
    local who = votes[i + level]
    if votes[i + 2] > now - window_us and not seen[who] then
      seen[who] = true
      voters = voters + 1
      local packed = redis.call('HGET', reporters_key, who)
      local last, bits = 0, 0
      if packed then
        last, bits = struct.unpack('<d', packed), packed:byte(57)
      end
      if last > 0 and last == window[HALF] then
        if bits % 4 == 0 then failing = failing + 1 end
      elseif last > 0 and last == window[HALF_BEFORE] then
        if bits < 4 then failing = failing + 1 end
      else
        reporters, failing = reporters + 1, failing + 1
      end
    end
  end
  return reporters, failing, by_errors, by_slow, voters
end

-- Note a vote, instead of an older one of the same worker, and forget those that are over.
local function vote(replica, worker, window_us)
  local kept = {}
  local votes = circuit[VOTES]
  for i = 1, #votes, 3 do
    if votes[i + 1] ~= worker and votes[i + 2] > now - window_us then
      kept[#kept + 1], kept[#kept + 2], kept[#kept + 3] = votes[i], votes[i + 1], votes[i + 2]
    end
  end
  kept[#kept + 1], kept[#kept + 2], kept[#kept + 3] = replica, worker, now
  circuit[VOTES] = kept
end

local function report(op)
  if circuit[STATE] ~= CLOSED or circuit[FORCED] ~= '' then return finish() end
  local rules, requests, failures, slow, votes = op[6], op[7], op[8], op[9], op[10]
  if circuit[TRIPS] > 0 and now - circuit[SINCE] >= 10 * rules[6] * 1000 then
    circuit[TRIPS] = 0
    changed = true
  end
  local window_us = rules[4] * 1000
  local window = circuit[WINDOW]
  pass(window, window_us)
  local told = requests > 0 or failures > 0 or slow > 0
  local current = op[5] == circuit[EPOCH]
  if current and (told or votes) then
    changed = true
    local replica = 'r' .. op[3]
    local worker = 'w' .. op[4] .. '/' .. op[3]
    if told then
      local width = floor(window_us / 10)
      local start = now - now % width
      local last = #window - 3
      if last < RING then window[FIRST] = now end
      if last < RING or window[last] < start then
        last = #window + 1
        window[last], window[last + 1], window[last + 2], window[last + 3] = start, 0, 0, 0
      end
      local told_of = {requests, failures, slow}
      for i = 1, 3 do
        window[last + i] = window[last + i] + told_of[i]
        window[SUM + i] = window[SUM + i] + told_of[i]
      end
      local known = redis.call('HMGET', reporters_key, replica, worker)
      redis.call('HSET', reporters_key,
        replica, tell(window, TALLIES, rules, known[1], requests, failures, slow),
        worker, tell(window, TALLIES + TALLY, rules, known[2], requests, failures, slow))
      -- Who is not known in this half is the first to make the key, or to have it live longer.
      if not known[1] or struct.unpack('<d', known[1]) ~= window[HALF] then
        redis.call('PEXPIRE', reporters_key, 2 * rules[4] + 2000)
      end
    end
    if votes then vote(replica, worker, window_us) end
  end

  local live, level = op[11], 0
  if live == 1 then live, level = op[12], 1 end
  local reporters, failing, by_errors, by_slow, voters = tallied(window, level, window_us)
  local all = window[SUM + 1]
  local seen = {all, window[SUM + 2], window[SUM + 3], reporters, failing}
  for i = 1, 5 do
    if circuit[REQUESTS + i - 1] ~= seen[i] then
      circuit[REQUESTS + i - 1] = seen[i]
      changed = true
    end
  end
  if current then
    local quorum = max(ceil(rules[5] * reporters), min(2, live), 1)
    if voters >= quorum
      or all > 0 and all >= rules[3] and (live <= 1 or now - window[FIRST] >= SETTLING)
      and (window[SUM + 2] / all >= rules[1] and by_errors >= quorum
        or window[SUM + 3] / all >= rules[2] and by_slow >= quorum)
    then
      trip(rules)
    end
  end
  return finish()
end

-- The position of a lease among `leases`, or nil. A lease is its id and its deadline.
local function lease_of(id, leases)
  for i = 1, #leases, 2 do
    if leases[i] == id then return i end
  end
end

local function ask(op)
  local rules, leases = op[5], circuit[LEASES]
  for i = 2, #leases, 2 do
    if leases[i] <= now then
      trip(rules)
      break
    end
  end
  if circuit[STATE] == OPEN and circuit[FORCED] == '' and now >= circuit[OPEN_UNTIL] then change(HALF_OPEN) end
  if circuit[STATE] ~= HALF_OPEN then return false end
  leases = circuit[LEASES]
  if lease_of(op[3], leases) then return true end
  local out, void = {}, circuit[VOID] or {}
  for i = 1, #void, 2 do
    if void[i + 1] + LATE > now then out[#out + 1], out[#out + 2] = void[i], void[i + 1] end
  end
  if #out < #void then
    circuit[VOID] = out
    changed = true
  end
  if (#leases + #out) / 2 >= rules[8] then return false end
  leases[#leases + 1] = op[3]
  leases[#leases + 1] = now + op[6] * 1000
  changed = true
  return true
end

local ASK, OK, FAILED = 0, 1, 2
local function probe(op)
  local done
  if op[4] == ASK then
    done = ask(op)
  else
    local at, void = lease_of(op[3], circuit[LEASES]), lease_of(op[3], circuit[VOID] or {})
    done = at ~= nil
    if void then
      table.remove(circuit[VOID], void)
      table.remove(circuit[VOID], void)
      changed = true
    end
    if at then
      table.remove(circuit[LEASES], at)
      table.remove(circuit[LEASES], at)
      changed = true
      if op[4] == FAILED then
        trip(op[5])
      elseif op[4] == OK then
        circuit[OKS] = circuit[OKS] + 1
        if circuit[OKS] >= op[5][8] then change(CLOSED) end
      end
    end
  end
  return {finish(), done and 1 or 0}
end

local function force(op)
  if op[3] ~= 'auto' then
    circuit[FORCED], circuit[BY], circuit[REASON] = op[3], op[6], op[7]
    circuit[FORCED_UNTIL] = op[5] > 0 and now + op[5] * 1000 or 0
    change(op[3] == 'open' and OPEN or CLOSED)
    circuit[OPEN_UNTIL] = op[3] == 'open' and circuit[FORCED_UNTIL] or 0
  elseif circuit[FORCED] ~= '' then
    let_go(HALF_OPEN)
  end
  return finish()
end

local function restore(op)
  local row = op[3]
  if row[4] > circuit[EPOCH] then
    circuit[STATE], circuit[EPOCH], circuit[SINCE], circuit[OPEN_UNTIL], circuit[TRIPS] =
      row[3], row[4], row[5], row[6], row[7]
    circuit[FORCED], circuit[FORCED_UNTIL], circuit[BY], circuit[REASON] = row[8], row[9], row[10], row[11]
    empty()
    changed, published = true, true
  end
  return finish()
end

local steps = {report = report, probe = probe, force = force, restore = restore}
local first = cmsgpack.unpack(ARGV[2])
if first[1] == 'probe' then
  breaker = first[2]
  load(1)
  return probe(first)
end
local rows = {}
for i = 1, #ARGV - 1 do
  local op = i == 1 and first or cmsgpack.unpack(ARGV[i + 1])
  breaker = op[2]
  load(i)
  rows[i] = steps[op[1]](op)
end
return rows
