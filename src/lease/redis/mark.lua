#!lua flags=allow-oom
-- Sets a bit of a status list. A script, because a plain SETBIT is refused where there is no memory left, and a revoke has to
-- work there too.
--
-- KEYS  list
-- ARGV  offset of the bit, until when the list is kept at least
local list, offset, keep = KEYS[1], ARGV[1], ARGV[2]

local answer = redis.pcall('SETBIT', list, offset, 1)
if type(answer) == 'table' and answer.err then
  -- What is no string holds no bits: it makes room. Brokers that saw the list before remember what stood there.
  if not string.find(answer.err, '^%-?WRONGTYPE') then
    return answer
  end
  redis.call('DEL', list)
  redis.call('SETBIT', list, offset, 1)
end
-- `GT` takes a list that is to be kept for good for the longest kept one, and a new list is kept for good.
redis.call('EXPIREAT', list, keep, 'NX')
redis.call('EXPIREAT', list, keep, 'GT')
return 'OK'
