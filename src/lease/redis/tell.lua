#!lua
-- Adds records to the timeline of a tree: its first ones to one list, and what comes after them to another, which keeps the newest. So
-- a long story costs as many commands as a short one.
-- No `allow-oom`: a store without memory keeps what decides, and leaves this out.
--
-- KEYS  the first ones, the newest
-- ARGV  until when both are kept, how many the first ones are, how many the newest are, the records
local keep, first, newest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- What is no list can hold no timeline: it makes room.
for _, list in ipairs(KEYS) do
  local kind = redis.call('TYPE', list).ok
  if kind ~= 'list' and kind ~= 'none' then
    redis.call('DEL', list)
  end
end
for at = 4, #ARGV do
  local list = redis.call('LLEN', KEYS[1]) < first and KEYS[1] or KEYS[2]
  redis.call('RPUSH', list, ARGV[at])
end
redis.call('LTRIM', KEYS[2], -newest, -1)
for _, list in ipairs(KEYS) do
  redis.call('EXPIREAT', list, keep)
end
