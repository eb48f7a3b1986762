#!lua
-- Adds records to the timeline of a tree: its first ones to one list, and what comes after them to another, which keeps the newest. So
-- a long story costs as many commands as a short one.
-- No `allow-oom`: a store without memory keeps what decides, and leaves this out.
--
-- KEYS  the first ones, the newest
-- ARGV  until when both are kept, how many the first ones are, how many the newest are, the records
local keep, first, newest = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

-- What is no list can hold no timeline: it makes room.
local function length(list)
  local length = redis.pcall('LLEN', list)
  if type(length) == 'number' then
    return length
  end
  redis.call('DEL', list)
  return 0
end

local told, since = length(KEYS[1]), length(KEYS[2])
for at = 4, #ARGV do
  if told < first then
    told = redis.call('RPUSH', KEYS[1], ARGV[at])
  else
    since = redis.call('RPUSH', KEYS[2], ARGV[at])
  end
end
if since > newest then
  redis.call('LTRIM', KEYS[2], -newest, -1)
end
for _, list in ipairs(KEYS) do
  redis.call('EXPIREAT', list, keep)
end
