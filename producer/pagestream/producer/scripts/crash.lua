-- The engine died under a worker that lives on: each job it ran counts a crash, once. The worker
-- keeps those below the cap, epoch unchanged.
-- KEYS[1] {ps:<queue>}:step:<worker>
-- ARGV msgpack [worker, crash cap, [[id, epoch, crashes known] …], the engine's last words]
-- -> [[id, crashes, kept|dead|fenced] …]

local worker, cap, running, error_text = unpack(cmsgpack.unpack(ARGV[1]))
local outcome = {}
for i, row in ipairs(running) do
  local job = load_job(row[1])
  if not job or job.state ~= 'running' or job.owner ~= worker or job.epoch ~= row[2] then
    outcome[i] = {row[1], job and job.crashes or 0, job and job.state == 'dead' and 'dead' or 'fenced'}
  else
    -- The caller names the count it knows, so that a call repeated after a lost reply counts once.
    local died = job.crashes == row[3] and crashed(job, cap, #running == 1, error_text)
    outcome[i] = {row[1], job.crashes, died and 'dead' or 'kept'}
  end
end
return outcome
