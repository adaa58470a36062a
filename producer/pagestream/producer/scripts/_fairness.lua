-- The queue's fairness: whose turn it is.
-- `served` has each tenant's virtual tokens: those computed for it, by its weight. `ready:<lane>`
-- repeats that score for tenants that wait.

local READY = {prefix .. 'ready:high', prefix .. 'ready:normal', prefix .. 'ready:low'}

local function anybody_waits()
  return call('EXISTS', unpack(READY)) > 0
end

-- The least score of the tenants that wait, or nil.
local function least_waiting()
  local least
  for _, ready in ipairs(anybody_waits() and READY or {}) do
    local first = call('ZRANGE', ready, 0, 0, 'WITHSCORES')
    local score = first[2] and tonumber(first[2])
    if score and (not least or score < least) then least = score end
  end
  return least
end

local function has_jobs(tenant)
  local streams = {}
  for i, lane in ipairs(LANES) do streams[i] = prefix .. 'jobs:' .. lane .. ':' .. tenant end
  return call('EXISTS', unpack(streams)) > 0
end

-- The least score of the tenants that have a job, beside one that had none; nil if nobody has any.
-- Whoever has none and is below that line would start on it, too, and is forgotten.
local function least_running(beside)
  local place = 0
  while true do
    local least = call('ZRANGE', prefix .. 'served', place, place, 'WITHSCORES')
    if not least[1] then return nil end
    if least[1] == beside then
      place = 1
    elseif has_jobs(least[1]) then
      return tonumber(least[2])
    else
      call('ZREM', prefix .. 'served', least[1])
    end
  end
end

-- A tenant that comes (back) starts level with the least served one that waits: it is owed nothing
-- for the time it sent no work. Where nobody waits and it `arrives`, with its first job, it starts
-- level with the least served that runs; where nobody has a job, everything begins anew.
local function make_ready(lane, tenant, arrives)
  local ready = prefix .. 'ready:' .. lane
  if call('ZSCORE', ready, tenant) then return end
  local score = tonumber(call('ZSCORE', prefix .. 'served', tenant) or 0)
  local line = least_waiting()
  if not line and arrives then
    line = least_running(tenant)
    if not line then score = 0 end
  end
  score = math.max(score, line or 0)
  call('ZADD', prefix .. 'served', score, tenant)
  call('ZADD', ready, score, tenant)
end

local function charge(tenant, tokens)
  local score = call('ZINCRBY', prefix .. 'served', tokens / (limits_of(tenant).weight or 1), tenant)
  for _, ready in ipairs(anybody_waits() and READY or {}) do
    call('ZADD', ready, 'XX', score, tenant)
  end
end
