#!lua
-- Writes leases, and the task itself where it is being declared, unless the lineage has ended or is not whole.
-- No `allow-oom`: a store without memory refuses this script before its first effect.
--
-- KEYS  ends of the lineage (root first), tasks of the lineage (root first), tally, tree, then the leases
-- ARGV  depth of the lineage, task id, record of the task ('' where it was declared before), until when the task is kept,
--       latest expiry among the leases, then record and time to keep for each lease
local depth = tonumber(ARGV[1])
local id, record, keep, latest = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local tally, tree = KEYS[2 * depth + 1], KEYS[2 * depth + 2]
local first_lease = 2 * depth + 3
local leases = #KEYS - first_lease + 1
local declaring = record ~= ''

local function keep_at_least(key)
  if redis.call('EXPIRETIME', key) < tonumber(keep) then
    redis.call('EXPIREAT', key, keep)
  end
end

local held = redis.call('MGET', unpack(KEYS, 1, 2 * depth))

-- The nearest end is the first that was recorded: nothing below an end can end again.
for at = depth, 1, -1 do
  if held[at] then
    return {'ended', held[at]}
  end
end
if declaring and held[2 * depth] then
  return {'exists'}
end
for at = depth + 1, 2 * depth - (declaring and 1 or 0) do
  if not held[at] then
    return {'missing'}
  end
end

if declaring then
  redis.call('SET', KEYS[2 * depth], record, 'EXAT', keep)
  redis.call('SADD', tree, id)
  keep_at_least(tree)
  held[2 * depth] = record
end
for lease = 0, leases - 1 do
  redis.call('SET', KEYS[first_lease + lease], ARGV[6 + 2 * lease], 'EXAT', ARGV[7 + 2 * lease])
end
if leases > 0 then
  if redis.call('HINCRBY', tally, 'minted:' .. id, leases) == leases then
    keep_at_least(tally)
  end
  if latest > tonumber(redis.call('HGET', tally, 'expiry:' .. id) or 0) then
    redis.call('HSET', tally, 'expiry:' .. id, ARGV[5])
  end
end
return {'written', unpack(held, depth + 1, 2 * depth)}
