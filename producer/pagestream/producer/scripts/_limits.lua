-- What an operator allows: weights, bounds and rates of tenants.

local BURST_S = 10 -- a rate limit lets so many seconds' worth through at once
local LIMITS = {'weight', 'queue_limit', 'jobs_per_s', 'tokens_per_s'}
local limits = {} -- tenant -> what is set for it, looked up once a call

-- `limits` holds `<tenant>:<name>`, and `*:<name>` for every tenant without one of its own.
local function limits_of(tenant)
  if limits[tenant] then return limits[tenant] end
  local own, found = tenant .. ':', {}
  local values = redis.pcall('HMGET', prefix .. 'limits', own .. 'weight', own .. 'queue_limit',
    own .. 'jobs_per_s', own .. 'tokens_per_s', '*:weight', '*:queue_limit', '*:jobs_per_s',
    '*:tokens_per_s')
  for i, name in ipairs(LIMITS) do
    local value = not values.err and tonumber(values[i] or values[i + #LIMITS])
    if value and value > 0 and value < 1e15 then found[name] = value end
  end
  limits[tenant] = found
  return found
end

-- How full a tenant's bucket of `jobs` or `tokens` is, its rate, and the most it holds; nil where
-- nothing limits it. Tokens are known when they are computed: their bucket may be in debt.
local function bucket(tenant, what)
  local rate = limits_of(tenant)[what .. '_per_s']
  if not rate then return nil end
  local most = math.max(1, rate * BURST_S)
  local kept = call('HMGET', prefix .. 'rate:' .. tenant, what, what .. '_ms')
  if not kept[1] then return most, rate, most end
  local filled = rate * math.max(0, now - tonumber(kept[2])) / 1000
  return math.min(most, tonumber(kept[1]) + filled), rate, most
end

-- Take from a bucket; false where there is none. One that is full again needs no key.
local function spend(tenant, what, amount)
  local level, rate, most = bucket(tenant, what)
  if not level then return false end
  local key = prefix .. 'rate:' .. tenant
  level = math.min(most, level - amount)
  call('HSET', key, what, level, what .. '_ms', digits(now))
  local full_ms = math.ceil((most - level) / rate * 1000) + 1
  call('PEXPIRE', key, digits(math.max(full_ms, call('PTTL', key))))
  return true
end
