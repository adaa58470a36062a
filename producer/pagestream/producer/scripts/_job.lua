-- The job record, its reply, and how a job changes state.
--
-- A job is in exactly one of three places, and each function here moves it whole:
--   queued    its lane entry is undelivered, or pending for the consumer `returned` (the shelf), or
--             for `suspected`: then `suspects` says from when on a worker may run it, alone
--   running   its lane entry is pending for its owner, and `running:<owner>` holds its lease
--   finished  no lane entry; the record and the reply expire together
-- The record is the truth; `running:<worker>` is its index by owner: one read fences a whole step.

local DEAD_LETTERS_MAX = 10000
local SUSPECT_CRASHES = 2 -- a job that ran at so many deaths is run alone
local DAY_MS = 24 * 3600 * 1000
local USAGE_MS = 35 * DAY_MS -- how long a day's usage is kept
local HOOKS_MS = 3 * DAY_MS -- how long an end that is to be told waits for a jobs process

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

-- A job is no suspect any more: it runs beside others again.
local function clear(job)
  job.crashes = SUSPECT_CRASHES - 1
  call('HSET', prefix .. 'job:' .. job.id, 'crashes', job.crashes)
  call('ZREM', prefix .. 'suspects', job.id)
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
