-- protocol.Put and protocol.Get. KEYS: the value. ARGV: channel, name, 'put', value, ttl_ms, expect ('': whatever is
-- there), longest, publish; or channel, name, 'get'. Answers now, version, value, ttl_ms, done.
--
-- A value is struct <dd: version, expires (0: without end); then the value itself. Redis drops it two seconds after its
-- end.
local GRACE_MS = 2000
local version, expires, value = 0, 0, ''
local packed = redis.call('GET', KEYS[1])
if packed then
  version, expires = struct.unpack('<dd', packed)
  if expires > 0 and expires <= now then
    version, expires = 0, 0
  else
    value = packed:sub(17)
  end
end

local done = true
if ARGV[3] == 'put' then
  local ttl, expect = tonumber(ARGV[5]), tonumber(ARGV[6])
  local until_us = ttl > 0 and now + ttl * 1000 or 0
  if expect and expect ~= version then done = false end
  if ARGV[7] == '1' and version > 0 and until_us > 0 and (expires == 0 or expires > until_us) then done = false end
  if done then
    version, value, expires = version + 1, ARGV[4], until_us
    packed = struct.pack('<dd', version, expires) .. value
    if ttl > 0 then
      redis.call('SET', KEYS[1], packed, 'PX', string.format('%.0f', ttl + GRACE_MS))
    else
      redis.call('SET', KEYS[1], packed)
    end
  end
end

local left = expires > 0 and math.ceil((expires - now) / 1000) or 0
if done and ARGV[8] == '1' then
  publish(ARGV[1], 'value', ARGV[2], '\150' .. cmsgpack.pack('named') .. cmsgpack.pack(now) .. cmsgpack.pack(version)
    .. binary(value) .. cmsgpack.pack(left) .. cmsgpack.pack(true))
end
return {now, version, value, left, done and 1 or 0}
