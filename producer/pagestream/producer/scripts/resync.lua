-- After `rollback`: Redis forgot writes it had acknowledged, or took this worker for dead. Set the
-- step key anew and say which of its running jobs the worker still owns, and how far each reply is.
-- KEYS[1] {ps:<queue>}:step:<worker>
-- ARGV msgpack [worker, incarnation, step, beat_ttl_ms, beat_info, model (JSON), [[id, epoch] …]]
-- -> [ok|replaced, now_ms, [[id, owned 1|0, state, id of the last entry, tokens published] …]]

local worker, incarnation, number, beat_ttl_ms, beat_info, model, running = unpack(cmsgpack.unpack(ARGV[1]))
local step = call('GET', prefix .. 'step:' .. worker)
if step and string.match(step, '^(.*):%d+$') ~= incarnation then return {'replaced', now, {}} end

call('SET', prefix .. 'hb:' .. worker, beat_info, 'PX', beat_ttl_ms)
call('SET', prefix .. 'step:' .. worker, incarnation .. ':' .. number)
call('HSET', prefix .. 'model', worker, model)

local tails = {}
for i, row in ipairs(running) do
  local job = load_job(row[1])
  local owned = job and job.state == 'running' and job.owner == worker and job.epoch == row[2]
  if owned then call('HSET', prefix .. 'running:' .. worker, job.id, lease_of(job, job.epoch)) end
  local epoch, offset = last_entry(row[1])
  tails[i] = {row[1], owned and 1 or 0, job and job.state or '', epoch .. '-' .. offset, published(row[1])}
end
return {'ok', now, tails}
