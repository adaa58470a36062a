-- Keep a line's answer, unless it has one, or the batch takes no more.
-- KEYS[1] {ps}:batch:<id>   ARGV line number, output|errors, the answer
-- -> 1 if it is kept

local state = redis.call('HMGET', KEYS[1], 'status', 'closed')
if (state[1] ~= 'in_progress' and state[1] ~= 'cancelling') or state[2] then return 0 end
local output, errors = KEYS[1] .. ':output', KEYS[1] .. ':errors'
if redis.call('HEXISTS', output, ARGV[1]) == 1 or redis.call('HEXISTS', errors, ARGV[1]) == 1 then
  return 0
end
local answers = KEYS[1] .. ':' .. ARGV[2]
redis.call('HSET', answers, ARGV[1], ARGV[3])
-- What nobody ever gathers goes with the batch's record.
if redis.call('HLEN', answers) == 1 then
  redis.call('PEXPIRE', answers, redis.call('PTTL', KEYS[1]))
end
return 1
