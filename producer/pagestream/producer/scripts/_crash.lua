-- Crashes of those who held a job: what they count, and what becomes of suspects.

local BACK_OFF_MS, BACK_OFF_MS_MAX = 1000, 60000
local ERROR_BYTES_MAX = 4000

-- Who killed is found: those who only stood by are suspects no more.
local function clear_suspects()
  for _, id in ipairs(call('ZRANGE', prefix .. 'suspects', 0, 999)) do
    local job = load_job(id)
    if job and job.state == 'queued' then
      clear(job)
      put_back(job)
    else
      call('ZREM', prefix .. 'suspects', id)
    end
  end
  ring()
end

local function bury(job, error_text)
  local message = 'the worker or its engine died ' .. job.crashes .. ' times while it ran this job'
  local payload = call('HGET', prefix .. 'job:' .. job.id, 'payload')
  local letter = call('XADD', prefix .. 'dead', 'MAXLEN', '~', DEAD_LETTERS_MAX, '*',
    'id', job.id, 'reason', 'crashed', 'message', message, 'error', error_text,
    'worker', job.owner or '', 'crashes', job.crashes, 'epoch', job.epoch + 1, 'lane', job.lane,
    'tenant', job.tenant, 'tokens_max', job.tokens_max or '0', 'mirror', job.mirror or '',
    'retention_ms', job.retention_ms or '3600000', 'webhook', job.webhook or '', 'payload', payload or '')
  call('HSET', prefix .. 'job:' .. job.id, 'letter', letter)
  finish_here(job, 'dead', 'error', 'crashed', message)
end

-- Count one crash of whoever held the job. At the cap it becomes a dead letter, if it ran alone:
-- beside others it need not be the one that kills. True if it did.
local function crashed(job, cap, alone, error_text)
  job.crashes = call('HINCRBY', prefix .. 'job:' .. job.id, 'crashes', 1)
  error_text = string.sub(error_text, -ERROR_BYTES_MAX)
  if alone and job.crashes >= cap then
    if job.cancel then -- nobody waits for it, and nobody need look into it
      finish_here(job, 'cancelled', 'cancelled')
    else
      bury(job, error_text)
    end
    clear_suspects()
    return true
  end
  local doublings = math.min(math.max(job.crashes - SUSPECT_CRASHES, 0), 10)
  job.retry_ms = digits(now + math.min(BACK_OFF_MS * 2 ^ doublings, BACK_OFF_MS_MAX))
  call('HSET', prefix .. 'job:' .. job.id, 'retry_ms', job.retry_ms, 'last_error', error_text)
  return false
end
