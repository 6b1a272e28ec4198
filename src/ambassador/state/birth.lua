-- When the data of this shard began (KEYS[1], struct <dd: the moment, and the moment from which buckets grow; 0: they
-- begin full). Workers write it for all shards when they register (gen.lua). If it is gone the data was lost, for
-- whoever asks here has registered: what is not there grows from nothing.
local born, grows_from
do
  local gen = redis.call('GET', KEYS[1])
  if gen then
    born, grows_from = struct.unpack('<dd', gen)
  elseif ARGV[1] == 'look' then
    born, grows_from = 0, 0
  else
    born, grows_from = now, ARGV[1] == 'fresh' and 0 or now
    redis.call('SET', KEYS[1], struct.pack('<dd', born, grows_from))
  end
end
