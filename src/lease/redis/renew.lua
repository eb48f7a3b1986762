#!lua
-- Replaces the renewal of a task, unless the lineage has ended or is not whole, or another renewal came first.
-- No `allow-oom`: a store without memory refuses this script before its first effect.
--
-- KEYS  ends of the lineage (root first), tasks of the lineage (root first), renewal, tally, tree
-- ARGV  depth of the lineage, the renewal that was read ('' for none), the new one, until when the task is kept,
--       channel for hints, task id
local depth, before, record, keep = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
local task, renewal = KEYS[2 * depth], KEYS[2 * depth + 1]

local held = redis.call('MGET', unpack(KEYS, 1, 2 * depth + 1))

-- The nearest end is the first that was recorded: nothing below an end can end again.
for at = depth, 1, -1 do
  if held[at] then
    return {'ended', held[at]}
  end
end
for at = depth + 1, 2 * depth do
  if not held[at] then
    return {'missing', false}
  end
end
if (held[2 * depth + 1] or '') ~= before then
  return {'changed', false}
end

redis.call('SET', renewal, record, 'EXAT', keep)
for _, key in ipairs({task, KEYS[2 * depth + 2], KEYS[2 * depth + 3]}) do
  local kept = redis.call('EXPIRETIME', key)
  if kept >= 0 and kept < tonumber(keep) then
    redis.call('EXPIREAT', key, keep)
  end
end
-- Whoever is watching looks again. A user that may not publish goes without.
redis.pcall('PUBLISH', ARGV[5], ARGV[6])
return {'written', false}
