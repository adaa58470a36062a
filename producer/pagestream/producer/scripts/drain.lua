-- Tell a worker to take no new job, finish what it runs, and leave.
-- KEYS[1] {ps:<queue>}:step:<worker>   ARGV worker, now (1: hand back at once what it runs)
-- -> draining | unknown (no live worker has the name)

local worker, at_once = ARGV[1], ARGV[2]
if call('EXISTS', prefix .. 'hb:' .. worker) == 0 then return 'unknown' end
call('XADD', prefix .. 'ctl:' .. worker, '*', 'kind', at_once == '1' and 'stop' or 'drain')
return 'draining'
