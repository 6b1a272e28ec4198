-- protocol.Beat and protocol.Roll. KEYS: gen, live, info, terms. ARGV: 'beat' or 'leave', member, info, the name of terms
-- ('': none), and the channel; or 'roll'. A member is msgpack [replica, slot]. Beats answer now, born, replicas, workers,
-- and the names of terms; a roll answers now, then member, last beat and info of each.
--
-- The one script whose work grows with the fleet, for it counts replicas: 37 us with 64 workers of two replicas, who beat
-- once a second. With 32 replicas it is three times that, a quarter of it for the names.
local TTL = 3000000
local KEEP_MS = 60000
local verb, member = ARGV[1], ARGV[2]
local left, comes = {}, false
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', now - TTL))) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('HDEL', KEYS[3], gone)
  left[#left + 1] = cmsgpack.unpack(gone)[1]
end
if verb == 'beat' then
  comes = redis.call('ZADD', KEYS[2], string.format('%.0f', now), member) == 1
  redis.call('HSET', KEYS[3], member, ARGV[3])
  redis.call('HSET', KEYS[4], cmsgpack.unpack(member)[1], ARGV[4])
  for i = 2, 4 do redis.call('PEXPIRE', KEYS[i], KEEP_MS) end
elseif verb == 'leave' then
  redis.call('ZREM', KEYS[2], member)
  redis.call('HDEL', KEYS[3], member)
  left[#left + 1] = cmsgpack.unpack(member)[1]
end

if verb == 'roll' then
  local answer = {now}
  local members = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do
    answer[#answer + 1] = members[i]
    answer[#answer + 1] = tonumber(members[i + 1])
    answer[#answer + 1] = redis.call('HGET', KEYS[3], members[i]) or ''
  end
  return answer
end
local seen, replicas, workers = {}, {}, 0
for _, each in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local replica = cmsgpack.unpack(each)[1]
  workers = workers + 1
  if not seen[replica] then
    seen[replica] = true
    replicas[#replicas + 1] = replica
  end
end
for _, replica in ipairs(left) do
  if not seen[replica] then redis.call('HDEL', KEYS[4], replica) end
end
if comes and workers > 1 then publish(ARGV[5], 'alive', '', cmsgpack.pack({#replicas, workers})) end
local told, terms = {[''] = true}, {}
for first = 1, #replicas, 1000 do
  local names = redis.call('HMGET', KEYS[4], unpack(replicas, first, math.min(first + 999, #replicas)))
  for _, name in ipairs(names) do
    if name and not told[name] then
      told[name] = true
      terms[#terms + 1] = name
    end
  end
end
table.sort(terms)
return {now, born, #replicas, workers, terms}
