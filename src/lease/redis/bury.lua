#!lua flags=allow-oom
-- Records that something is dead, unless that is on record, and yields the record that stands.
-- `allow-oom`: a revoke has to work where there is no memory left.
--
-- KEYS  what is dead
-- ARGV  record, until when it is kept
local standing = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'EXAT', ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  return redis.error_reply('kept nothing of what it was given: its clock is ahead')
end
return standing or ARGV[1]
