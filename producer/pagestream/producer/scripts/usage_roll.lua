-- Add a day's usage to its month's, once.
-- KEYS[1] {ps:<queue>}:usage:<day>   ARGV day (days since 1970), month (2026-11), kept_ms
-- -> 1 if it was added

local month = string.match(KEYS[1], '^(.*:)%d+$') .. ARGV[2]
if redis.call('HSETNX', month, ':' .. ARGV[1], 1) == 0 then return 0 end
local counts = redis.call('HGETALL', KEYS[1])
for place = 1, #counts, 2 do redis.call('HINCRBY', month, counts[place], counts[place + 1]) end
redis.call('PEXPIRE', month, ARGV[3])
return 1
