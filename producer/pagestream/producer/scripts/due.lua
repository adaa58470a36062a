-- What is to be done, and when. Who takes an entry has it for a lease, not for good.
-- KEYS[1] {ps}:due   ARGV put, entry, delay_ms              do it after so long
--                         take, lease_ms, count_max        -> ticket, entries whose time has come
--                         begin, lease_ms, entry, ticket   -> 1 if the entry is still the ticket's
--                         hold, lease_ms, entry            still at it

local function after(delay_ms)
  local time = redis.call('TIME')
  return string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + delay_ms)
end

local what = ARGV[1]
if what == 'put' then return redis.call('ZADD', KEYS[1], after(ARGV[3]), ARGV[2]) end

local leased = after(ARGV[2])
if what == 'hold' then return redis.call('ZADD', KEYS[1], 'XX', 'CH', leased, ARGV[3]) end
if what == 'begin' then
  if redis.call('ZSCORE', KEYS[1], ARGV[3]) ~= ARGV[4] then return 0 end
  redis.call('ZADD', KEYS[1], 'XX', leased, ARGV[3])
  return 1
end
local entries = redis.call('ZRANGE', KEYS[1], '-inf', after(0), 'BYSCORE', 'LIMIT', 0, ARGV[3])
for _, entry in ipairs(entries) do redis.call('ZADD', KEYS[1], 'XX', leased, entry) end
return {leased, entries}
