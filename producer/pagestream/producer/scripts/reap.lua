-- Take back the jobs of workers whose heartbeat is gone, end jobs whose time or readers are, and list
-- those this worker holds.
-- KEYS[1] {ps:<queue>}:step:<worker>   ARGV worker, crash cap, beat_ttl_ms
-- -> [now_ms, jobs put back, jobs dead, [dead worker …], [[id, epoch] … of this worker],
--     [tenant, weight, … where one is set]]

local TENANTS_KEPT = 100
local DUE_MAX = 256 -- jobs looked at in one call
local LOOK_AGAIN_MS = 5000

local worker, cap, beat_ttl_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local watch = prefix .. 'watch'

-- A heartbeat that is gone says something only while somebody has been watching. When nobody could
-- reap for a while (Redis was down or stood still), those of the living are gone as well, and they
-- get a heartbeat's life to come back.
local function is_watched()
  -- A first write that a server out of memory allows, and then all that follows.
  call('HDEL', watch, '')
  local seen = call('HMGET', watch, 'last_ms', 'since_ms')
  local last_ms, since_ms = tonumber(seen[1] or 0), tonumber(seen[2] or now)
  if now < last_ms or now - last_ms > beat_ttl_ms / 2 then since_ms = now end
  call('HSET', watch, 'last_ms', digits(now), 'since_ms', digits(since_ms))
  return now - since_ms >= beat_ttl_ms
end

local back, dead, gone = 0, 0, {}
for _, other in ipairs(is_watched() and call('HKEYS', prefix .. 'model') or {}) do
  if other ~= worker and call('EXISTS', prefix .. 'hb:' .. other) == 0 then
    local taken, died = recover(other, cap)
    back, dead = back + taken, dead + died
    gone[#gone + 1] = other
  end
end

-- A queued job ends here. A running one is its worker's: it knows the deadline, and is told when the
-- last reader has gone.
for _, id in ipairs(call('ZRANGEBYSCORE', prefix .. 'due', '-inf', digits(now), 'LIMIT', 0, DUE_MAX)) do
  local job = load_job(id)
  if not job or FINISHED[job.state] then
    call('ZREM', prefix .. 'due', id)
  elseif job.state == 'queued' and deadline_passed(job) then
    finish_here(job, 'expired', 'expired', 'expired', 'its deadline passed in the queue')
  else
    if reader_is_gone(job) then cancel_job(job, 'abandoned') end
    if not FINISHED[call('HGET', prefix .. 'job:' .. id, 'state')] then
      schedule(job)
      if deadline_passed(job) then call('ZADD', prefix .. 'due', digits(now + LOOK_AGAIN_MS), id) end
    end
  end
end

-- Forget tenants without jobs, once they are many. One that comes back starts level with the least
-- served that waits, so only those at or below that line lose nothing by it.
if call('ZCARD', prefix .. 'served') > TENANTS_KEPT then
  local line = least_waiting() or '+inf'
  for _, tenant in ipairs(call('ZRANGEBYSCORE', prefix .. 'served', '-inf', line, 'LIMIT', 0, 100)) do
    if not has_jobs(tenant) then call('ZREM', prefix .. 'served', tenant) end
  end
end

local leases, own = call('HGETALL', prefix .. 'running:' .. worker), {}
for i = 1, #leases, 2 do
  own[#own + 1] = {leases[i], tonumber(string.match(leases[i + 1], '^%d+'))}
end
local weights, fields = {}, redis.pcall('HGETALL', prefix .. 'limits')
for i = 1, fields.err and 0 or #fields, 2 do
  local tenant = string.match(fields[i], '^(.*):weight$')
  if tenant then
    weights[#weights + 1] = tenant
    weights[#weights + 1] = fields[i + 1]
  end
end
return {now, back, dead, gone, own, weights}
