-- What every script of a queue shares: names, time, the job record, and how a job changes state.
-- The loader puts this text before each script, so that `call`, `now`, `load_job`, … are in scope.
--
-- A job is in exactly one of three places, and each function here moves it whole:
--   queued    its lane entry is undelivered, or pending for the consumer `returned` (the shelf), or
--             for `suspected`: then `suspects` says from when on a worker may run it, alone
--   running   its lane entry is pending for its owner, and `running:<owner>` holds its lease
--   finished  no lane entry; the record and the reply expire together
-- The record is the truth; `running:<worker>` is its index by owner: one read fences a whole step.

local call = redis.call
local prefix = string.match(KEYS[1] or '', '^{ps:[^}]+}:')
if not prefix then
  return redis.error_reply('INVALID KEYS[1] must be a key of a queue: {ps:<queue>}:…')
end

local GROUP, RETURNED, SUSPECTED = 'workers', 'returned', 'suspected'
local LANES = {'high', 'normal', 'low'}
local DEAD_LETTERS_MAX = 10000
local BURST_S = 10 -- a rate limit lets so many seconds' worth through at once
local SUSPECT_CRASHES = 2 -- a job that ran at so many deaths is run alone
local DAY_MS = 24 * 3600 * 1000
local USAGE_MS = 35 * DAY_MS -- how long a day's usage is kept
local HOOKS_MS = 3 * DAY_MS -- how long an end that is to be told waits for a jobs process

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function digits(number)
  return string.format('%.0f', number)
end

-- The value of a field in the flat list that a stream entry is.
local function field(entry, name)
  for i = 1, #entry, 2 do
    if entry[i] == name then return entry[i + 1] end
  end
end

-- What an operator allows ------------------------------------------------------------------------

local LIMITS = {'weight', 'queue_limit', 'jobs_per_s', 'tokens_per_s'}
local limits = {} -- tenant -> what is set for it, looked up once a call

-- `limits` holds `<tenant>:<name>`, and `*:<name>` for every tenant without one of its own.
local function limits_of(tenant)
  if limits[tenant] then return limits[tenant] end
  local names, found = {}, {}
  for i, name in ipairs(LIMITS) do
    names[2 * i - 1], names[2 * i] = tenant .. ':' .. name, '*:' .. name
  end
  local values = redis.pcall('HMGET', prefix .. 'limits', unpack(names))
  for i, name in ipairs(LIMITS) do
    local value = not values.err and tonumber(values[2 * i - 1] or values[2 * i])
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

-- The queue's fairness ---------------------------------------------------------------------------
-- `served` has each tenant's virtual tokens: those computed for it, by its weight. `ready:<lane>`
-- repeats that score for tenants that wait.

local function least_served()
  local least
  for _, lane in ipairs(LANES) do
    local first = call('ZRANGE', prefix .. 'ready:' .. lane, 0, 0, 'WITHSCORES')
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

-- A tenant without a job sends one while nobody waits: it starts level with the least served that
-- runs. Whoever has no job and is below that line would start on it, too, and is forgotten.
local function arrive(tenant)
  if least_served() then return end -- `make_ready` compares it with those that wait
  local served = prefix .. 'served'
  local own, line = tonumber(call('ZSCORE', served, tenant) or 0), nil
  repeat
    local least = call('ZRANGE', served, 0, 0, 'WITHSCORES')
    if not least[1] then return end -- nobody has a job: everything begins anew
    if has_jobs(least[1]) then line = tonumber(least[2]) else call('ZREM', served, least[1]) end
  until line
  call('ZADD', served, math.max(own, line), tenant)
end

-- A tenant that comes (back) starts level with the least served one that waits: it is owed nothing
-- for the time it sent no work.
local function make_ready(lane, tenant)
  local ready = prefix .. 'ready:' .. lane
  if call('ZSCORE', ready, tenant) then return end
  local own = tonumber(call('ZSCORE', prefix .. 'served', tenant) or 0)
  local score = math.max(own, least_served() or 0)
  call('ZADD', prefix .. 'served', score, tenant)
  call('ZADD', ready, score, tenant)
end

local function charge(tenant, tokens)
  local score = call('ZINCRBY', prefix .. 'served', tokens / (limits_of(tenant).weight or 1), tenant)
  for _, lane in ipairs(LANES) do
    call('ZADD', prefix .. 'ready:' .. lane, 'XX', score, tenant)
  end
end

local function ring()
  call('XADD', prefix .. 'bell', 'MAXLEN', 1, '*', 'ring', '')
end

-- The record -------------------------------------------------------------------------------------

local FIELDS = {
  'state', 'epoch', 'crashes', 'owner', 'lane', 'tenant', 'entry', 'tokens_max', 'cancel',
  'mirror', 'queue_deadline_ms', 'deadline_ms', 'retention_ms', 'reader_timeout_ms', 'reader_due_ms',
  'retry_ms', 'last_error', 'webhook',
}
local FINISHED = {done = true, cancelled = true, expired = true, failed = true, dead = true}

-- nil without a whole record; an optional field that is not set is false.
local function load_job(id)
  local values = redis.pcall('HMGET', prefix .. 'job:' .. id, unpack(FIELDS))
  if values.err or not values[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(FIELDS) do job[name] = values[i] end
  if not (job.lane and job.tenant and job.entry) then return nil end
  job.epoch, job.crashes = tonumber(job.epoch) or 0, tonumber(job.crashes) or 0
  job.stream = prefix .. 'jobs:' .. job.lane .. ':' .. job.tenant
  return job
end

local function lease_of(job, epoch)
  return epoch .. ' ' .. (job.mirror == '1' and '1' or '0') .. ' ' .. job.tenant
end

-- What is due -------------------------------------------------------------------------------------
-- `due` has jobs with a deadline or a reading lease, by when to look at them: see `reap`.

-- A queue timeout is for the first claim: a job that has begun keeps its place.
local function deadline_passed(job)
  local deadline = tonumber(job.deadline_ms or math.huge)
  if job.epoch == 0 then deadline = math.min(deadline, tonumber(job.queue_deadline_ms or math.huge)) end
  return deadline <= now
end

local function reader_is_gone(job)
  return not job.cancel and tonumber(job.reader_due_ms or math.huge) <= now
end

local function schedule(job)
  local at = tonumber(job.deadline_ms or math.huge)
  if job.epoch == 0 then at = math.min(at, tonumber(job.queue_deadline_ms or math.huge)) end
  if not job.cancel then at = math.min(at, tonumber(job.reader_due_ms or math.huge)) end
  if at < math.huge then
    call('ZADD', prefix .. 'due', digits(at), job.id)
  else
    call('ZREM', prefix .. 'due', job.id)
  end
end

-- The reply --------------------------------------------------------------------------------------

-- k written; g the stream is gone, and stays gone; d not after the last entry, so refused.
local function append(job, entry_id, fields)
  local reply = redis.pcall('XADD', prefix .. 'out:' .. job.id, 'NOMKSTREAM', entry_id, unpack(fields))
  if type(reply) == 'table' then
    return string.find(reply.err, 'equal or smaller', 1, true) and 'd' or 'g'
  elseif not reply then
    return 'g'
  end
  if job.mirror == '1' then
    local frame = {id = entry_id}
    for i = 1, #fields, 2 do frame[fields[i]] = fields[i + 1] end
    call('PUBLISH', prefix .. 'tokens:' .. job.id, cjson.encode(frame))
  end
  return 'k'
end

-- Epoch and offset of the reply's last entry.
local function last_entry(id)
  local last = call('XREVRANGE', prefix .. 'out:' .. id, '+', '-', 'COUNT', 1)[1]
  if not last then return 0, 0 end
  local epoch, offset = string.match(last[1], '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(offset)
end

-- Output tokens in the reply: the offset of its last entry that has any.
local function published(id)
  local upto = '+'
  while true do
    local page = call('XREVRANGE', prefix .. 'out:' .. id, upto, '-', 'COUNT', 16)
    for _, entry in ipairs(page) do
      if field(entry[2], 'ids') then return tonumber(string.match(entry[1], '-(%d+)$')) end
    end
    if #page < 16 then return 0 end
    upto = '(' .. page[#page][1]
  end
end

-- Changes of state -------------------------------------------------------------------------------

-- Take an entry off its lane for good; a lane stream without entries goes, consumers and all.
local function remove_entry(stream, lane, tenant, entry)
  call('XACK', stream, GROUP, entry)
  call('XDEL', stream, entry)
  if call('XLEN', stream) == 0 then
    call('DEL', stream)
    call('ZREM', prefix .. 'ready:' .. lane, tenant)
  end
end

local COUNTED = {'prompt_tokens', 'completion_tokens', 'cached_tokens'}

local tally -- tenant -> what its jobs took, while a script ends many and writes it once

local function write_usage(tenant, counts)
  local key, who = prefix .. 'usage:' .. math.floor(now / DAY_MS), tenant .. ':'
  local requests = call('HINCRBY', key, who .. 'requests', counts.requests)
  if requests == counts.requests then call('PEXPIRE', key, digits(USAGE_MS)) end
  for _, name in ipairs(COUNTED) do
    if counts[name] > 0 then call('HINCRBY', key, who .. name, counts[name]) end
  end
end

-- What a job took, as its worker says; of one that no worker ended, only that it was.
local function account(job, usage)
  local counts = tally and tally[job.tenant]
    or {requests = 0, prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0}
  counts.requests = counts.requests + 1
  for _, name in ipairs(COUNTED) do
    counts[name] = counts[name] + (tonumber(string.match(usage, '"' .. name .. '":(%d+)')) or 0)
  end
  if tally then tally[job.tenant] = counts else write_usage(job.tenant, counts) end
end

-- An end that somebody wants to be told of, for the jobs process.
local function tell(job, ending)
  local hooks = prefix .. 'hooks'
  call('XADD', hooks, 'MINID', '~', digits(now - HOOKS_MS), '*', 'id', job.id, 'tenant', job.tenant,
    'webhook', job.webhook, 'state', ending.state, 'reason', ending.reason, 'usage', ending.usage or '')
  call('PEXPIRE', hooks, digits(HOOKS_MS))
end

-- Write the terminal entry and close the job. `ending`: epoch, offset, state, reason, and what else
-- the entry holds. Returns k, or g where the reply is gone (the job is closed all the same).
local function finish(job, ending)
  if ending.reason == 'cancelled' and job.cancel == 'abandoned' then
    ending.error = 'abandoned'
    ending.message = 'nobody read it for ' .. job.reader_timeout_ms .. ' ms'
  end
  local fields = {
    'event', 'end', 'choice', ending.choice or '0', 'reason', ending.reason,
    'text', ending.text or '', 'usage', ending.usage or '', 'timings', ending.timings or '',
  }
  if (ending.error or '') ~= '' then
    for _, value in ipairs({'error', ending.error, 'message', ending.message or ''}) do
      fields[#fields + 1] = value
    end
  end
  local epoch = ending.epoch
  local code = append(job, epoch .. '-' .. ending.offset, fields)
  if code == 'd' then
    local offset
    epoch, offset = last_entry(job.id)
    code = append(job, epoch .. '-' .. (offset + 1), fields)
  end
  local record, retention = prefix .. 'job:' .. job.id, job.retention_ms or '3600000'
  call('HSET', record, 'state', ending.state, 'reason', ending.reason, 'epoch', epoch, 'owner', '',
       'finished_ms', digits(now))
  call('PEXPIRE', record, retention)
  call('PEXPIRE', prefix .. 'out:' .. job.id, retention)
  if (job.owner or '') ~= '' then call('HDEL', prefix .. 'running:' .. job.owner, job.id) end
  if job.deadline_ms or job.queue_deadline_ms or job.reader_due_ms then
    call('ZREM', prefix .. 'due', job.id)
  end
  remove_entry(job.stream, job.lane, job.tenant, job.entry)
  account(job, ending.usage or '')
  if job.webhook then tell(job, ending) end
  return code
end

-- End a job that no worker's step ends: a claim of its own (epoch + 1), so that whoever still
-- believes to hold it is fenced.
local function finish_here(job, state, reason, error_code, message)
  return finish(job, {
    epoch = job.epoch + 1, offset = published(job.id) + 1, state = state, reason = reason,
    error = error_code, message = message,
  })
end

-- Make a consumer the holder of a job's lane entry, delivered before or not.
local function assign(job, consumer)
  local claim = {'XCLAIM', job.stream, GROUP, consumer, 0, job.entry, 'FORCE', 'JUSTID'}
  if redis.pcall(unpack(claim)).err then -- somebody deleted the group
    call('XGROUP', 'CREATE', job.stream, GROUP, '0')
    call(unpack(claim))
  end
end

-- Take a job from its owner and put it on the shelf, or among the suspects; its progress is kept,
-- its epoch unchanged.
local function put_back(job)
  if (job.owner or '') ~= '' then call('HDEL', prefix .. 'running:' .. job.owner, job.id) end
  if job.cancel then
    finish_here(job, 'cancelled', 'cancelled')
    return
  end
  if #call('XRANGE', job.stream, job.entry, job.entry) == 0 then
    job.entry = call('XADD', job.stream, '*', 'id', job.id, 'tokens_max', job.tokens_max or '0')
  end
  call('HSET', prefix .. 'job:' .. job.id, 'state', 'queued', 'owner', '', 'entry', job.entry)
  if job.crashes >= SUSPECT_CRASHES then
    assign(job, SUSPECTED)
    -- Who kills dies early, again and again: a job that has said less has its turn sooner.
    local due = now
    if job.retry_ms then due = math.max(due, tonumber(job.retry_ms)) + math.min(published(job.id), 1000) end
    call('ZADD', prefix .. 'suspects', due, job.id)
  else
    assign(job, RETURNED)
    make_ready(job.lane, job.tenant)
  end
end

-- Cancel an unfinished job, for good: `why` outlives a worker that is told and dies.
local function cancel_job(job, why)
  job.cancel = job.cancel or why
  if job.state == 'queued' then
    finish_here(job, 'cancelled', 'cancelled')
    return
  end
  call('HSET', prefix .. 'job:' .. job.id, 'cancel', job.cancel)
  call('XADD', prefix .. 'ctl:' .. job.owner, '*', 'kind', 'cancel', 'id', job.id)
end
