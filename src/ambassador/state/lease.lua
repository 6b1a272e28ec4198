-- protocol.Lease, the same arithmetic as bucket.py, for as many buckets of one shard as there are.
--
-- KEYS: gen, then the buckets. ARGV: for each bucket, struct of 19 doubles: rate depth want least demand tells_demand debt
-- credit window_s back back_window has_start start has_most most first lacks birth knows. Answers for each: msgpack
-- of protocol.Leased.
--
-- A bucket is struct of 10 doubles: tokens at window epoch demand tellers demand_before tellers_before reserved
-- reserved_until; of a calendar window the tokens less its depth are kept, so what is used, whatever the depth of the
-- next lease is. Where nothing was ever reserved the last two are not there. It is dropped when it would be full, or its
-- window over, and no demand of it counts any more; what never fills is kept for a week.
local EPOCH = 500000
local HOUR_MS = 3600000
local GRACE_MS = 2000
local RESERVE_GRACE = 1000000
local MOST_RESERVE = 5000000
local TELLING = 1500000
local WEEK_MS = 604800000
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local epoch_now = floor(now / EPOCH)
local answers = {}

for i = 1, #ARGV do
  local key = KEYS[i + 1]
  local rate, depth, want, least, demand, tells, debt, credit, window_s, back, back_window, has_start, start, has_most, most, first,
    lacks, birth, knows = struct.unpack('<ddddddddddddddddddd', ARGV[i])
  local window_us = window_s * 1000000
  local packed = redis.call('GET', key)
  local tokens, at, window, epoch, demands, tellers, demands_before, tellers_before
  local reserved, reserved_until = 0, 0
  if packed then
    if #packed >= 80 then reserved, reserved_until = struct.unpack('<dd', packed, 65) end
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
      tokens = min(depth, birth + rate * max(0, now - grows_from) / 1000000)
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
  first = min(first, want)
  local all = max(demands, demands_before, demand)
  local is_held = now < reserved_until
  local waits = window_s > 0 and knows == 0 and grows_from > 0 and now < grows_from + TELLING
  if want > 0 and tokens >= 1 and not waits then
    granted = max(0, floor(first < reserved and is_held and tokens - reserved or tokens))
    if all > demand then granted = min(granted, max(least, first, ceil(tokens * demand / all))) end
    granted = min(granted, want)
    if granted < want and first > 1 then granted = granted - granted % first end
    tokens = tokens - granted
  end
  if window_s == 0 then
    lacks = min(lacks, floor(depth))
    if is_held and granted >= reserved then
      is_held, reserved_until = false, now
    end
    if lacks > 1 and granted < lacks and tokens < lacks and all > rate and rate > 0 then
      if is_held and lacks >= reserved or not is_held and now >= reserved_until + reserved / rate * 1000000 then
        reserved = lacks
        reserved_until = now + min((lacks - tokens) / rate * 1000000 + RESERVE_GRACE, MOST_RESERVE)
      end
    end
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
  local kept =
    struct.pack('<dddddddd', window_s > 0 and tokens - depth or tokens, now, window, epoch, demands, tellers, demands_before, tellers_before)
  if reserved > 0 then kept = kept .. struct.pack('<dd', reserved, reserved_until) end
  redis.call('SET', key, kept, 'PX', string.format('%.0f', keep_ms))
  answers[i] = cmsgpack.pack({'leased', now, granted, tokens, retry_ms, max(tellers, tellers_before, 1), window_s > 0 and window or 0, left_ms,
    born or 0})
end
return answers
