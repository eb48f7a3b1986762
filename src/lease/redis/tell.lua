#!lua
-- Adds records to the timeline of a tree, and drops the oldest above so many.
-- No `allow-oom`: a store without memory keeps what decides, and leaves this out.
--
-- KEYS  timeline
-- ARGV  until when it is kept, how many it holds, the records
local timeline, keep, most = KEYS[1], ARGV[1], tonumber(ARGV[2])

-- What is no list can hold no timeline: it makes room.
if redis.call('TYPE', timeline).ok ~= 'list' then
  redis.call('DEL', timeline)
end
for at = 3, #ARGV do
  redis.call('RPUSH', timeline, ARGV[at])
end
redis.call('LTRIM', timeline, -most, -1)
redis.call('EXPIREAT', timeline, keep)
