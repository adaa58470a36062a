-- Keep a prompt that is to be submitted later, or set the time of one that is there.
-- KEYS[1] {ps}:due   ARGV id, about (JSON), next_ms, kept_ms (0: for good)
-- -> 1, or 0 if the id is there with another `about`

local key = '{ps}:schedule:' .. ARGV[1]
local known = redis.call('HGET', key, 'about')
if known and known ~= ARGV[2] then return 0 end
redis.call('HSET', key, 'about', ARGV[2], 'next_ms', ARGV[3])
if ARGV[4] ~= '0' then redis.call('PEXPIRE', key, ARGV[4]) end
redis.call('ZADD', KEYS[1], ARGV[3], 'prompt:' .. ARGV[1])
return 1
