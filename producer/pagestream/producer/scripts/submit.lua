-- Accept a job, or attach to the one that has its id already.
-- KEYS[1] {ps:<queue>}:bell   ARGV id, payload, options (JSON; all of them optional):
--   lane, tenant, tokens_max, queue_limit, retention_ms, queue_timeout_ms, deadline_ms,
--   reader_timeout_ms, mirror, webhook, traceparent, tracestate
--   (times are durations in ms)
-- -> [accepted|attached|conflict|full|limited, now_ms, retry_after_ms, state; if full, the bound; if
--     limited, what there were too many of: jobs or tokens]

local QUEUE_LIMIT = 10000
local RETENTION_MS = 3600000
local PAYLOAD_BYTES_MAX = 16 * 1024 * 1024
local TEMPLATE_TOKENS = 64

local id, payload, options_json = ARGV[1], ARGV[2], ARGV[3]

local function invalid(what)
  return redis.error_reply('INVALID ' .. what)
end

if not payload then return invalid('submit takes an id, a payload and options') end
if #id > 128 or not string.match(id, '^%w[%w._:-]*$') then
  return invalid('id: 1 to 128 characters of A-Z a-z 0-9 . _ : -')
end
if payload == '' then return invalid('payload is empty') end
if #payload > PAYLOAD_BYTES_MAX then
  return invalid('payload has ' .. #payload .. ' bytes; the most is ' .. PAYLOAD_BYTES_MAX)
end

local parsed, options = pcall(cjson.decode, options_json or '{}')
if not parsed or type(options) ~= 'table' then return invalid('options is not a JSON object') end
for name, value in pairs(options) do
  if value == cjson.null then options[name] = nil end
end

local lane, tenant = options.lane or 'normal', options.tenant or 'default'
if lane ~= 'high' and lane ~= 'normal' and lane ~= 'low' then
  return invalid('lane: high, normal or low')
end
if type(tenant) ~= 'string' or #tenant > 64 or not string.match(tenant, '^%w[%w._-]*$') then
  return invalid('tenant: 1 to 64 characters of A-Z a-z 0-9 . _ -')
end
local counts = {'tokens_max', 'queue_limit', 'retention_ms', 'queue_timeout_ms', 'deadline_ms',
  'reader_timeout_ms'}
for _, name in ipairs(counts) do
  local value = options[name]
  if value ~= nil and (type(value) ~= 'number' or value ~= value or value < 0 or value > 1e13) then
    return invalid(name .. ': a number of 0 or more')
  end
end

local webhook = options.webhook
if webhook ~= nil and (type(webhook) ~= 'string' or #webhook > 2048 or not string.match(webhook, '^https?://.')) then
  return invalid('webhook: an http or https URL of 2048 characters at most')
end

local TRACE = {'traceparent', 'tracestate'}
for _, name in ipairs(TRACE) do
  local value = options[name]
  if value ~= nil and (type(value) ~= 'string' or #value > 512) then
    return invalid(name .. ': a string of 512 characters at most')
  end
end

local function retry_after_ms()
  local per_s = tonumber(call('HGET', prefix .. 'pace', 'per_s') or 1)
  return math.floor(math.max(100, math.min(30000, 1000 / math.max(per_s, 1e-3))))
end

local hash = redis.sha1hex(payload)
local record = prefix .. 'job:' .. id
local known = call('HMGET', record, 'hash', 'state')
if known[1] then
  return {known[1] == hash and 'attached' or 'conflict', now, 0, known[2]}
end

local arrives, unfinished = not has_jobs(tenant), 0
for _, name in ipairs(arrives and {} or LANES) do
  unfinished = unfinished + call('XLEN', prefix .. 'jobs:' .. name .. ':' .. tenant)
end
local queue_limit = limits_of(tenant).queue_limit or options.queue_limit or QUEUE_LIMIT
if unfinished >= queue_limit then return {'full', now, retry_after_ms(), digits(queue_limit)} end
for what, least in pairs({jobs = 1, tokens = 0}) do
  local level, rate = bucket(tenant, what)
  if level and level < least then
    return {'limited', now, math.ceil((least - level) / rate * 1000), what}
  end
end

-- The first write is one that a server out of memory refuses: then nothing is written at all.
local stream = prefix .. 'jobs:' .. lane .. ':' .. tenant
if arrives or call('EXISTS', stream) == 0 then
  call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM')
end
local tokens_max = digits(options.tokens_max or #payload + TEMPLATE_TOKENS)
local entry = call('XADD', stream, '*', 'id', id, 'tokens_max', tokens_max)

local fields = {
  'payload', payload, 'hash', hash, 'state', 'queued', 'epoch', 0, 'crashes', 0, 'owner', '',
  'lane', lane, 'tenant', tenant, 'entry', entry, 'tokens_max', tokens_max, 'queued_ms', digits(now),
  'retention_ms', digits(options.retention_ms or RETENTION_MS), 'mirror', options.mirror and '1' or '',
}
local function keep(name, value)
  fields[#fields + 1] = name
  fields[#fields + 1] = value
end
local waits = {queue_timeout_ms = 'queue_deadline_ms', deadline_ms = 'deadline_ms',
  reader_timeout_ms = 'reader_due_ms'}
local due = {id = id, epoch = 0}
for option, name in pairs(waits) do
  if options[option] then
    due[name] = digits(now + options[option])
    keep(name, due[name])
  end
end
if options.reader_timeout_ms then keep('reader_timeout_ms', digits(options.reader_timeout_ms)) end
if options.queue_timeout_ms or options.deadline_ms or options.reader_timeout_ms then schedule(due) end
if webhook then keep('webhook', webhook) end
for _, name in ipairs(TRACE) do
  if options[name] then keep(name, options[name]) end
end
spend(tenant, 'jobs', 1)
if spend(tenant, 'tokens', tonumber(tokens_max)) then keep('paid', tokens_max) end
call('HSET', record, unpack(fields))

local out = prefix .. 'out:' .. id
if call('EXISTS', out) == 1 then call('DEL', out) end -- left by a record that is gone
call('XADD', out, '0-1', 'event', 'queued')
make_ready(lane, tenant, arrives)
ring()
return {'accepted', now, 0, 'queued'}
