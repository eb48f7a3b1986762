#!lua flags=allow-oom
-- Notes when an end was seen to be recorded, unless that was noted before, and says which instant stands.
-- A script, because a plain HSETNX is refused where there is no memory left, and a revoke has to work there too.
--
-- KEYS  ended
-- ARGV  name of the field, the instant (Unix milliseconds), until when to keep the hash if nobody has said so
local ended, field, at, keep = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

local noted = redis.pcall('HGET', ended, field)
if type(noted) == 'string' and #noted < 16 and string.find(noted, '^%d+$') then
  return noted
end
-- What is no hash can hold no counters, and what is no instant was not noted.
if type(noted) == 'table' and noted.err and string.find(noted.err, '^%-?WRONGTYPE') then
  redis.call('DEL', ended)
end
redis.call('HSET', ended, field, at)
if redis.call('EXPIRETIME', ended) == -1 then
  redis.call('EXPIREAT', ended, keep)
end
return at
