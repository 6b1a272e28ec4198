-- KEYS: gen. ARGV: what to write down if nothing says when the data of this shard began: 'fresh' (nobody has lost
-- anything), 'lost', or 'look': nothing. Answers when it began (0: nothing says), 1 if buckets begin full, and now.
-- birth.lua has done the work.
return {born, grows_from == 0 and 1 or 0, now}
