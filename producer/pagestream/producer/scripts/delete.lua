-- Remove all of a job's data at once; a worker that runs it is told to stop and can write no more.
-- KEYS[1] {ps:<queue>}:bell   ARGV id
-- -> deleted | unknown

local job = load_job(ARGV[1])
if not job then return 'unknown' end
if not FINISHED[job.state] then
  if job.state == 'running' then
    call('HDEL', prefix .. 'running:' .. job.owner, job.id)
    call('XADD', prefix .. 'ctl:' .. job.owner, '*', 'kind', 'cancel', 'id', job.id)
  end
  call('ZREM', prefix .. 'due', job.id)
  remove_entry(job.stream, job.lane, job.tenant, job.entry)
end
local letter = call('HGET', prefix .. 'job:' .. job.id, 'letter')
if letter then call('XDEL', prefix .. 'dead', letter) end
call('DEL', prefix .. 'job:' .. job.id, prefix .. 'out:' .. job.id)
return 'deleted'
