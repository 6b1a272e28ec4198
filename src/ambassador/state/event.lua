-- How an event of the protocol is published: msgpack [kind, name, body]. Whatever the protocol calls bytes must be of
-- msgpack's type for bytes, which cmsgpack has no way to write.
local function binary(bytes)
  local length = #bytes
  if length < 256 then return '\196' .. string.char(length) .. bytes end
  if length < 65536 then return '\197' .. struct.pack('>I2', length) .. bytes end
  return '\198' .. struct.pack('>I4', length) .. bytes
end

-- A user who may not publish has the operation done all the same: events may be lost, what was written may not be half
-- of it. Who connects is told of the missing right (redis.py), and workers that may not listen look by themselves.
local function publish(channel, kind, name, body)
  redis.pcall('PUBLISH', channel, '\147' .. cmsgpack.pack(kind) .. cmsgpack.pack(name) .. binary(body))
end
