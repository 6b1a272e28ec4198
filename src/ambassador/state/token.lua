-- protocol.Token. KEYS: the credential. ARGV: channel, name, action, nonce, version, value, ttl_ms, lock_ms.
-- Answers now, version, value, expires, done.
--
-- A credential is struct <dddI2c0: version, expires (0: without end), locked until, nonce of the lock; then the value.
-- Redis drops it two seconds after its value and its lock are over.
local GRACE = 2000000
local channel, name, action, nonce = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local version, expires, locked, holder, value = 0, 0, 0, '', ''
local packed = redis.call('GET', KEYS[1])
if packed then
  local rest
  version, expires, locked, holder, rest = struct.unpack('<dddI2c0', packed)
  value = packed:sub(rest)
  if expires > 0 and expires <= now then version, expires, value = 0, 0, '' end
  if locked <= now then locked, holder = 0, '' end
end

local done = false
if action == 'read' then
  done = version > 0
elseif action == 'lock' then
  if nonce ~= '' and (locked == 0 or holder == nonce) then
    locked, holder, done = now + ARGV[8] * 1000, nonce, true
  end
elseif locked > 0 and nonce ~= '' and holder == nonce then
  if action == 'unlock' then
    locked, holder, done = 0, '', true
  elseif version == tonumber(ARGV[5]) then
    local ttl = tonumber(ARGV[7])
    version, value, expires = version + 1, ARGV[6], ttl > 0 and now + ttl * 1000 or 0
    locked, holder, done = 0, '', true
  end
end

if done and action ~= 'read' then
  if version == 0 and locked == 0 then
    redis.call('DEL', KEYS[1])
  else
    local now_packed = struct.pack('<dddI2c0', version, expires, locked, #holder, holder) .. value
    if version > 0 and expires == 0 then
      redis.call('SET', KEYS[1], now_packed)
    else
      local keep_ms = (math.max(expires, locked) - now + GRACE) / 1000
      redis.call('SET', KEYS[1], now_packed, 'PX', string.format('%.0f', keep_ms))
    end
  end
  if action == 'store' then
    publish(channel, 'token', name, '\150' .. cmsgpack.pack('tokened') .. cmsgpack.pack(now) .. cmsgpack.pack(version)
      .. binary('') .. cmsgpack.pack(expires) .. cmsgpack.pack(true))
  end
end
return {now, version, value, expires, done and 1 or 0}
