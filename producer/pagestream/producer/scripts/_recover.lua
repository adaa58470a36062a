-- What to do with a worker's jobs when it is gone: for register, leave and reap.

-- Take every job of a worker away from it, then forget the worker. With a cap it died, and each job
-- counts a crash; without, it left of its own will. Returns how many went back and how many died.
local function recover(worker, cap)
  local back, dead = 0, 0
  local held = call('HKEYS', prefix .. 'running:' .. worker)
  local function take_from_worker(job)
    local before = job.last_error and (job.last_error .. '\nthen ') or ''
    local why = before .. 'worker ' .. worker .. ' died: its heartbeat ended'
    if cap and crashed(job, cap, #held == 1, why) then
      dead = dead + 1
    else
      put_back(job)
      back = back + 1
    end
  end
  for _, id in ipairs(held) do
    local job = load_job(id)
    if job and job.state == 'running' and job.owner == worker then take_from_worker(job) end
  end
  call('DEL', prefix .. 'running:' .. worker, prefix .. 'step:' .. worker, prefix .. 'ctl:' .. worker,
    prefix .. 'hb:' .. worker, prefix .. 'live:' .. worker)
  call('HDEL', prefix .. 'model', worker)
  -- What the index does not know (somebody deleted it) is still pending for the worker.
  for _, tenant in ipairs(call('ZRANGE', prefix .. 'served', 0, -1)) do
    for _, lane in ipairs(LANES) do
      local stream = prefix .. 'jobs:' .. lane .. ':' .. tenant
      local pending = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1000, worker)
      for _, item in ipairs(pending.err and {} or pending) do
        local entry = call('XRANGE', stream, item[1], item[1])[1]
        local job = entry and load_job(field(entry[2], 'id') or '')
        if job and job.state == 'running' and job.owner == worker then
          take_from_worker(job)
        elseif job and job.entry == item[1] and not FINISHED[job.state] then
          local owner = job.state == 'running' and job.owner or RETURNED
          call('XCLAIM', stream, GROUP, owner, 0, item[1], 'JUSTID')
        else
          remove_entry(stream, lane, tenant, item[1])
        end
      end
      if not pending.err and #pending < 1000 then
        redis.pcall('XGROUP', 'DELCONSUMER', stream, GROUP, worker)
      end
    end
  end
  if back > 0 then ring() end
  return back, dead
end
