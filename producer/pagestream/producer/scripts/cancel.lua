-- Cancel a job, wherever it is.
-- KEYS[1] {ps:<queue>}:bell   ARGV id
-- -> cancelled (it was queued: its terminal entry is written) | cancelling (its worker was told and
--    writes the terminal entry) | finished | unknown

local job = load_job(ARGV[1])
if not job then return 'unknown' end
if FINISHED[job.state] then return 'finished' end
if job.state == 'queued' then
  finish_here(job, 'cancelled', 'cancelled')
  return 'cancelled'
end
-- The flag outlives the worker: whoever takes the job back cancels it then.
if not job.cancel then
  call('HSET', prefix .. 'job:' .. job.id, 'cancel', '1')
  call('XADD', prefix .. 'ctl:' .. job.owner, '*', 'kind', 'cancel', 'id', job.id)
end
return 'cancelling'
