-- Cancel a job, wherever it is.
-- KEYS[1] {ps:<queue>}:bell   ARGV id
-- -> cancelled (it was queued: its terminal entry is written) | cancelling (its worker was told and
--    writes the terminal entry) | finished | unknown

local job = load_job(ARGV[1])
if not job then return 'unknown' end
if FINISHED[job.state] then return 'finished' end
local outcome = job.state == 'queued' and 'cancelled' or 'cancelling'
if not job.cancel then cancel_job(job, '1') end
return outcome
