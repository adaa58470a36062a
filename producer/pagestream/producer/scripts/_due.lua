-- What is due: deadlines, and readers that have to come back.
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
