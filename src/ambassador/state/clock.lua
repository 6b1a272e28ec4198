-- In front of every script: the time, in microseconds of Redis' own clock. No worker's clock is ever looked at.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
