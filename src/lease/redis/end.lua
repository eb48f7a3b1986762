#!lua flags=allow-oom
-- Records the end of a task, unless it or an ancestor has ended, and counts what that took with it. What is counted are
-- tasks; the number of credentials is a counter, so it costs the same for one credential and for a hundred thousand.
-- `allow-oom`: a revoke has to work where there is no memory left.
--
-- KEYS  ends of the lineage (root first), task, tree, tally, ended
-- ARGV  ids of the lineage (root first), record of the end, until when it is kept, '1' to record the end of an unseen task
local depth = #KEYS - 4
local task_key, tree, tally, ended = KEYS[depth + 1], KEYS[depth + 2], KEYS[depth + 3], KEYS[depth + 4]
local id, record, keep, unseen = ARGV[depth], ARGV[depth + 1], ARGV[depth + 2], ARGV[depth + 3]

local held = redis.call('MGET', unpack(KEYS, 1, depth + 1))
local task = held[depth + 1]
for at = depth, 1, -1 do
  if held[at] then
    return {held[at], redis.call('HGET', ended, ARGV[at]) or '0 0 0', task}
  end
end
if not task and unseen ~= '1' then
  return false
end

local function fields(key)
  local flat, map = redis.call('HGETALL', key), {}
  for at = 1, #flat, 2 do
    map[flat[at]] = flat[at + 1]
  end
  return map
end

local before, counters = fields(ended), fields(tally)
local tasks, minted, expiry = 0, 0, 0
for _, member in ipairs(redis.call('SMEMBERS', tree)) do
  if string.sub(member, 1, #id) == id then
    local active, ancestor = true, member
    while #ancestor > #id do
      active = active and not before[ancestor]
      ancestor = string.match(ancestor, '^(.*)%-') or ''
    end
    tasks = tasks + (active and 1 or 0)
    minted = minted + tonumber(counters['minted:' .. member] or 0)
    expiry = math.max(expiry, tonumber(counters['expiry:' .. member] or 0))
  end
end

local count = string.format('%d %d %d', tasks, minted, expiry)
redis.call('SET', KEYS[depth], record, 'EXAT', keep)
redis.call('HSET', ended, id, count)
if redis.call('EXPIRETIME', ended) < tonumber(keep) then
  redis.call('EXPIREAT', ended, keep)
end
return {record, count, task}
