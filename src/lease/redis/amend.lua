#!lua
-- Replaces a record, if the one that was read is what stands there, and says whether it did.
-- No `allow-oom`: a store without memory refuses this script before its first effect.
--
-- KEYS  the record
-- ARGV  the record that was read ('' for none), the new one, until when it is kept ('' for good)
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
if ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'EXAT', ARGV[3])
end
return 1
