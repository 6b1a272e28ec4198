-- protocol.Lease, the same arithmetic as bucket.py, for as many buckets of one shard as there are.
--
-- KEYS: gen, then the buckets. ARGV: for each bucket, struct <ddddddddddddddd: rate depth want least demand tells_demand debt
-- credit window_s back back_window has_start start has_most most. Answers for each: msgpack of protocol.Leased.
--
-- A bucket is struct <dddddddd: tokens at window epoch demand tellers demand_before tellers_before; of a calendar window
-- the tokens less its depth are kept, so what is used, whatever the depth of the next lease is. It is dropped when it
-- would be full, or its window over, and no demand of it counts any more; what never fills is kept for a week.
local EPOCH = 500000
local HOUR_MS = 3600000
local GRACE_MS = 2000
local WEEK_MS = 604800000
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local epoch_now = floor(now / EPOCH)
local answers = {}

for i = 1, #ARGV do
  local key = KEYS[i + 1]
  local rate, depth, want, least, demand, tells, debt, credit, window_s, back, back_window, has_start, start, has_most, most =
    struct.unpack('<ddddddddddddddd', ARGV[i])
  local window_us = window_s * 1000000
  local packed = redis.call('GET', key)
  local tokens, at, window, epoch, demands, tellers, demands_before, tellers_before
  if packed then
    tokens, at, window, epoch, demands, tellers, demands_before, tellers_before = struct.unpack('<dddddddd', packed)
  else
    at, window, epoch, demands, tellers, demands_before, tellers_before = now, 0, 0, 0, 0, 0, 0
    if window_s > 0 then
      tokens, window = 0, floor(now / window_us)
    elseif has_start > 0 then
      tokens = max(-depth, min(depth, start))
    elseif grows_from == 0 then
      tokens = depth
    else
      tokens = min(depth, rate * max(0, now - grows_from) / 1000000)
    end
  end

  if window_s > 0 then
    local current = floor(now / window_us)
    -- One step of the clock back over a border does not begin a window again.
    if current ~= window and current ~= window - 1 then
      window = current
      tokens = 0
    end
    tokens = tokens + depth
  elseif now > at then
    tokens = tokens + rate * (now - at) / 1000000
  end
  if has_most > 0 and window_s == 0 then tokens = min(tokens, max(most, -depth)) end
  tokens = min(tokens, depth)
  if credit > 0 or back > 0 or debt > 0 then
    tokens = tokens + credit
    if window_s > 0 and back_window == window then tokens = tokens + back end
    tokens = max(min(tokens, depth) - debt, min(tokens, -depth))
  end

  if epoch_now ~= epoch then
    local follows = epoch_now == epoch + 1
    demands_before = follows and demands or 0
    tellers_before = follows and tellers or 0
    demands, tellers, epoch = 0, 0, epoch_now
  end
  if tells > 0 then
    demands = demands + demand
    tellers = tellers + 1
  end

  local granted = 0
  if want > 0 and tokens >= 1 then
    granted = floor(tokens)
    local all = max(demands, demands_before, demand)
    if all > demand then granted = min(granted, max(least, ceil(tokens * demand / all))) end
    granted = min(granted, want)
    tokens = tokens - granted
  end

  local missing = max(1, least) - tokens
  local retry_ms, left_ms, keep_ms = 0, 0, WEEK_MS
  if window_s > 0 then
    left_ms = ceil(((window + 1) * window_us - now) / 1000)
    keep_ms = left_ms + GRACE_MS
    if missing > 0 then retry_ms = min(left_ms, HOUR_MS) end
  elseif rate > 0 then
    keep_ms = min(ceil((depth - tokens) / rate * 1000) + GRACE_MS, 52 * WEEK_MS)
    if missing > 0 then retry_ms = min(ceil(missing / rate * 1000), HOUR_MS) end
  elseif missing > 0 then
    retry_ms = HOUR_MS
  end
  redis.call('SET', key,
    struct.pack('<dddddddd', window_s > 0 and tokens - depth or tokens, now, window, epoch, demands, tellers, demands_before, tellers_before),
    'PX', string.format('%.0f', keep_ms))
  answers[i] = cmsgpack.pack({'leased', now, granted, tokens, retry_ms, max(tellers, tellers_before, 1), window_s > 0 and window or 0, left_ms,
    window_s > 0 and born or 0})
end
return answers
