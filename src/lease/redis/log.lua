#!lua flags=allow-oom
-- Adds a record to the log of ends, tells whoever listens, and drops what has been there for longer than anything lives.
-- `allow-oom`: a revoke has to work where there is no memory left.
-- Ages go by the clock of Redis, which gives out the positions.
--
-- KEYS  log
-- ARGV  record, for how long it is kept (milliseconds), channel for hints, what the hint says
local log, kept = KEYS[1], tonumber(ARGV[2])

-- What is no stream can hold no log: it makes room.
if redis.call('TYPE', log).ok ~= 'stream' then
  redis.call('DEL', log)
end
local now = redis.call('TIME')
local cutoff = string.format('%d-0', tonumber(now[1]) * 1000 - kept)
redis.call('XADD', log, 'MINID', '~', cutoff, '*', 'r', ARGV[1])
redis.pcall('PUBLISH', ARGV[3], ARGV[4])
