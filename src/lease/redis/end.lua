#!lua flags=allow-oom
-- Records the end of a task, unless it or an ancestor has ended, and counts what that took with it. What is counted are
-- tasks; the number of credentials is a counter, so it costs the same for one credential and for a hundred thousand.
-- `allow-oom`: a revoke has to work where there is no memory left.
-- The end is recorded first, and nothing about counters can fail the step: they carry no MAC, so they may hold anything.
--
-- KEYS  ends of the lineage (root first), task, its renewal, tree, tally, ended
-- ARGV  ids of the lineage (root first), record of the end, until when it is kept, '1' to record the end of an unseen task,
--       channel for hints
local depth = #KEYS - 5
local tree, tally, ended = KEYS[depth + 3], KEYS[depth + 4], KEYS[depth + 5]
local id, record, keep, unseen = ARGV[depth], ARGV[depth + 1], ARGV[depth + 2], ARGV[depth + 3]

local held = redis.call('MGET', unpack(KEYS, 1, depth + 2))
local task, renewal = held[depth + 1], held[depth + 2]
for at = depth, 1, -1 do
  if held[at] then
    local counted = redis.pcall('HGET', ended, ARGV[at])
    return {held[at], type(counted) == 'string' and counted or '0 0 0', task, renewal}
  end
end
if not task and unseen ~= '1' then
  return false
end
redis.call('SET', KEYS[depth], record, 'EXAT', keep)

-- The answer to `command` about `key`. A key of another type than it has to be is of no use to anyone: it makes room.
local function about(command, key)
  local answer = redis.pcall(command, key)
  if type(answer) == 'table' and answer.err and string.find(answer.err, '^%-?WRONGTYPE') then
    redis.pcall('DEL', key)
  end
  return answer
end

local function fields(key)
  local flat, map = about('HGETALL', key), {}
  for at = 1, #flat, 2 do
    map[flat[at]] = flat[at + 1]
  end
  return map
end

-- The largest number that is counted exactly.
local most = 2 ^ 53

local function number(text)
  local value = tonumber(text) or 0
  return value >= 0 and value <= most and math.floor(value) or 0
end

local before, counters = fields(ended), fields(tally)
-- By how much an id is longer than the one above it. Where nothing of the tree has ended, there is nothing to look for above each task.
local hop, any_before = 11, next(before) ~= nil
local tasks, minted, expiry = 0, 0, 0
for _, member in ipairs(about('SMEMBERS', tree)) do
  if string.sub(member, 1, #id) == id then
    local active, length = true, any_before and #member or 0
    while active and length > #id do
      active = not before[string.sub(member, 1, length)]
      length = length - hop
    end
    tasks = tasks + (active and 1 or 0)
    minted = math.min(minted + number(counters['minted:' .. member]), most)
    expiry = math.max(expiry, number(counters['expiry:' .. member]))
  end
end

local count = string.format('%d %d %d', tasks, minted, expiry)
redis.pcall('HSET', ended, id, count)
-- An earlier end of this very task may have left it there, if that was collected.
redis.pcall('HDEL', ended, 'seen:' .. id)
local kept = redis.pcall('EXPIRETIME', ended)
if type(kept) == 'number' and kept < tonumber(keep) then
  redis.pcall('EXPIREAT', ended, keep)
end
-- Whoever is watching looks again. A user that may not publish goes without.
redis.pcall('PUBLISH', ARGV[depth + 4], id)
return {record, count, task, renewal}
