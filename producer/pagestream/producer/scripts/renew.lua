-- Somebody reads these jobs: one that nobody reads for its `reader_timeout_ms` is cancelled.
-- KEYS[1] {ps:<queue>}:bell   ARGV id …
-- -> how many of them are unfinished and have a reader timeout

local renewed = 0
for _, id in ipairs(ARGV) do
  local job = load_job(id)
  if job and job.reader_timeout_ms and not job.cancel and not FINISHED[job.state] then
    job.reader_due_ms = digits(now + tonumber(job.reader_timeout_ms))
    call('HSET', prefix .. 'job:' .. id, 'reader_due_ms', job.reader_due_ms)
    schedule(job)
    renewed = renewed + 1
  end
end
return renewed
