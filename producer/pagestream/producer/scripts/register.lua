-- A worker begins: it takes its name, and whatever an earlier process of that name left behind goes
-- back to the queue as crashed.
-- KEYS[1] {ps:<queue>}:step:<worker>
-- ARGV worker, incarnation, beat_ttl_ms, beat_info, model (JSON), crash cap
-- -> [ok|taken, now_ms, jobs put back, jobs dead]

local worker, incarnation, beat_ttl_ms, beat_info, model, cap = unpack(ARGV)
local step = call('GET', prefix .. 'step:' .. worker)
local ours = step and string.match(step, '^(.*):%d+$') == incarnation
if not ours and call('EXISTS', prefix .. 'hb:' .. worker) == 1 then return {'taken', now, 0, 0} end

local back, dead = 0, 0
if not ours then back, dead = recover(worker, tonumber(cap)) end
call('SET', prefix .. 'hb:' .. worker, beat_info, 'PX', beat_ttl_ms)
call('SET', prefix .. 'step:' .. worker, incarnation .. ':0')
call('HSET', prefix .. 'model', worker, model)
return {'ok', now, back, dead}
