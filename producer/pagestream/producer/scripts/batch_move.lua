-- Move a batch from one status to another, once; when is kept as `<status>_ms`.
-- KEYS[1] {ps}:batch:<id>   ARGV the statuses it may have now (with commas between), the new one, and
--   fields and values to set with it
-- -> 1 if it moved

local status = redis.call('HGET', KEYS[1], 'status')
if not status or not string.find(',' .. ARGV[1] .. ',', ',' .. status .. ',', 1, true) then return 0 end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], 'status', ARGV[2])
redis.call('HSETNX', KEYS[1], ARGV[2] .. '_ms', now)
for place = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1]) end
return 1
