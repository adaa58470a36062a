-- One step of a worker, in one atomic call: publish, finish, hand back, claim, control, heartbeat.
-- KEYS[1] {ps:<queue>}:step:<worker>
-- ARGV msgpack [worker, incarnation, step, beat_ttl_ms (0: no beat), beat_info, rows, ends, returns,
--               slots, tokens, tokens of one job at most, control_after, prefills, aged_slots, victim,
--               snapshot (kept with the beat; '': leave the last one)]
--   rows     [[id, epoch, entry id, choice, start, "12 99 3", text] …]
--   ends     [[id, epoch, offset, choice, reason, text, usage, timings, error, message] …]
--   returns  [[id, epoch, tokens_max if known better, true if it is suspected no more] …]
--   prefills [[id, epoch, prompt tokens computed, in the place of what was said of the claim before,
--              true if the first token is there] …]
--   victim   [id, epoch, lane, tenant, tokens]: if the best waiting job is of this lane and tenant and
--            finds no room, the job goes back and makes room for so many tokens; or []
-- -> [applied|already|rollback, now_ms, row codes, end codes, claims, controls, bell id, waiting,
--     1 if the victim is not this worker's any more]
--   codes    one letter each: k ok · f fenced · g gone (reply or record deleted) · d duplicate
--   claims   [[id, epoch, crashes, lane, tenant, payload, queued_ms, deadline_ms, mirror, aged,
--              traceparent, tracestate] …]
--   controls [[id, field, value …] …]
--   waiting  [lane, tenant, tokens] of the best job that is still waiting, or []

local CONTROLS_MAX = 256

local worker, incarnation, step, beat_ttl_ms, beat_info, rows, ends, returns,
  slots, tokens, job_tokens_max, control_after, prefills, aged_slots, victim,
  snapshot = unpack(cmsgpack.unpack(ARGV[1]))
local running = prefix .. 'running:' .. worker
local STATES = {stop = 'done', length = 'done', cancelled = 'cancelled', expired = 'expired',
  error = 'failed'}

-- As of the beginning: what this step rings itself is news to this worker, too.
local bell = call('XREVRANGE', prefix .. 'bell', '+', '-', 'COUNT', 1)[1]
local bell_id = bell and bell[1] or '0-0'

local status = 'applied'
local last_step = call('GET', prefix .. 'step:' .. worker)
if last_step == incarnation .. ':' .. digits(step) then
  status = 'already'
elseif last_step ~= incarnation .. ':' .. digits(step - 1) then
  return {'rollback', now, '', '', {}, {}, bell_id, {}, 0}
end

-- XTRIM is the first write because a server out of memory allows it, and then all that follows in
-- this script: running jobs finish and make room, while `submit` is refused.
local control = prefix .. 'ctl:' .. worker
call('XTRIM', control, 'MINID', control_after)
call('SET', prefix .. 'step:' .. worker, incarnation .. ':' .. digits(step))

-- Leases: job id -> {epoch, mirror, tenant}. Most values repeat, so each is parsed once.
local leases, parsed = {}, {}
local function hold(id, value)
  local lease = parsed[value]
  if not lease then
    local epoch, mirror, tenant = string.match(value, '^(%d+) (%d) (.*)$')
    lease = {epoch = tonumber(epoch), mirror = mirror == '1', tenant = tenant}
    parsed[value] = lease
  end
  leases[id] = lease
  return lease
end
if #rows + #ends + #returns + #prefills + #victim > 0 or status == 'already' then
  local held = call('HGETALL', running)
  for i = 1, #held, 2 do hold(held[i], held[i + 1]) end
end

-- The lease of (id, epoch), or nil and the code that says why not. The record decides where the
-- index knows nothing.
local function lease(id, epoch)
  local found = leases[id]
  if found then
    if found.epoch == epoch then return found end
    return nil, 'f'
  end
  local job = load_job(id)
  if not job then return nil, 'g' end
  if job.state ~= 'running' or job.owner ~= worker or job.epoch ~= epoch then return nil, 'f' end
  local value = lease_of(job, epoch)
  call('HSET', running, id, value)
  return hold(id, value)
end

-- Publish ----------------------------------------------------------------------------------------

local served = {} -- tenant -> tokens computed for it, as far as this step tells
local replies, xadd, find = prefix .. 'out:', redis.pcall, string.find

-- The one function that runs for every row of every step: kept lean.
local function publish(row)
  local id, ids = row[1], row[6]
  local held, why = leases[id], nil
  if not held or held.epoch ~= row[2] then
    held, why = lease(id, row[2])
    if not held then return why end
  end
  local reply = xadd('XADD', replies .. id, 'NOMKSTREAM', row[3], 'choice', row[4], 'start', row[5],
    'ids', ids, 'text', row[7])
  if type(reply) ~= 'string' then
    if reply and find(reply.err, 'equal or smaller', 1, true) then return 'd' end
    -- The reader deleted the reply: the job is cancelled, and nothing is written.
    finish(load_job(id), {epoch = row[2], offset = 0, state = 'cancelled', reason = 'cancelled'})
    leases[id] = nil
    return 'g'
  end
  if held.mirror then
    call('PUBLISH', prefix .. 'tokens:' .. id, cjson.encode({
      id = row[3], choice = row[4], start = row[5], ids = ids, text = row[7]}))
  end
  local count = 1
  if find(ids, ' ', 1, true) then count = select(2, string.gsub(ids, ' ', ' ')) + 1 end
  served[held.tenant] = (served[held.tenant] or 0) + count
  return 'k'
end

local function close(ending)
  local id, epoch, offset, choice, reason, text, usage, timings, error_code, message = unpack(ending)
  local held, why = lease(id, epoch)
  if not held then return why end
  local job = load_job(id)
  leases[id] = nil
  if not job then -- deleted by hand: only the lease is left
    call('HDEL', running, id)
    return 'g'
  end
  return finish(job, {
    epoch = epoch, offset = digits(offset), state = STATES[reason] or 'failed', reason = reason,
    choice = choice, text = text, usage = usage, timings = timings, error = error_code,
    message = message,
  })
end

-- How fast jobs finish, for the retry hint of a full queue: an average over windows of a second.
local function keep_pace(finished)
  local pace = call('HMGET', prefix .. 'pace', 'since_ms', 'count', 'per_s')
  local elapsed = now - tonumber(pace[1] or 0)
  local count = tonumber(pace[2] or 0) + finished
  if elapsed < 1000 then
    call('HSET', prefix .. 'pace', 'count', count)
  elseif elapsed > 60000 then -- after a pause the old window says nothing
    call('HSET', prefix .. 'pace', 'since_ms', digits(now), 'count', finished)
  else
    local per_s = count * 1000 / elapsed
    if pace[3] then per_s = (per_s + tonumber(pace[3])) / 2 end
    call('HSET', prefix .. 'pace', 'since_ms', digits(now), 'count', 0, 'per_s', per_s)
  end
end

-- A claim costs nothing until this is known: what its prompt took. The tenant's rate paid for the most
-- it may take at the submit, and pays for the prompt once, however often it is claimed.
local function settle(id, epoch, computed, has_token)
  local held = lease(id, epoch)
  if not held then return end
  local record, tenant = prefix .. 'job:' .. id, held.tenant
  local known = call('HMGET', record, 'charged', 'paid', 'first_token_ms')
  served[tenant] = (served[tenant] or 0) + computed - tonumber(known[1] or computed)
  if has_token and not known[3] then
    call('HSET', record, 'charged', computed, 'first_token_ms', digits(now))
  else
    call('HSET', record, 'charged', computed)
  end
  if known[2] and computed > 0 then
    spend(tenant, 'tokens', computed - tonumber(known[2]))
    call('HDEL', record, 'paid')
  end
end

local row_codes, end_codes = {}, {}

local function apply()
  for i = 1, #rows do row_codes[i] = publish(rows[i]) end
  for tenant, count in pairs(served) do spend(tenant, 'tokens', count) end
  for _, item in ipairs(prefills) do settle(unpack(item)) end
  for tenant, count in pairs(served) do charge(tenant, count) end
  tally = {}
  for i = 1, #ends do end_codes[i] = close(ends[i]) end
  for tenant, counts in pairs(tally) do write_usage(tenant, counts) end
  tally = nil
  if #ends > 0 then keep_pace(#ends) end
  local back = 0
  for _, item in ipairs(returns) do
    local job = lease(item[1], item[2]) and load_job(item[1])
    if job then
      if item[3] then
        job.tokens_max = digits(item[3])
        call('HSET', prefix .. 'job:' .. job.id, 'tokens_max', job.tokens_max)
      end
      if item[4] then clear(job) end
      put_back(job)
      leases[job.id] = nil
      back = back + 1
    end
  end
  if back > 0 then ring() end
end

-- The step was applied and its reply lost: say what became of each row, write nothing.
local function recall()
  local function code(item)
    local job = load_job(item[1])
    if not job then return 'g' end
    local ours = job.epoch == item[2] and (job.owner == worker or FINISHED[job.state])
    return ours and 'k' or 'f'
  end
  for i = 1, #rows do row_codes[i] = code(rows[i]) end
  for i = 1, #ends do end_codes[i] = code(ends[i]) end
end

local victim_left = false

-- Take the victim out for the job it was chosen for, if that is the one that waits; once a step.
local function evict(head)
  if #victim == 0 or victim_left or head.lane ~= victim[3] or head.tenant ~= victim[4] then return nil end
  local job = lease(victim[1], victim[2]) and load_job(victim[1])
  if not job then return nil end
  victim_left = true
  leases[job.id] = nil
  put_back(job)
  cursors[job.stream] = nil -- the stream may have gone with it, if it was cancelled
  ring() -- for another worker
  return victim[5]
end

-- Control and heartbeat, and go ------------------------------------------------------------------

local claims, waiting = {}, {}
if status == 'applied' then
  apply()
  local room = {slots = slots, tokens = tokens, job_tokens_max = job_tokens_max, aged_slots = aged_slots}
  claims, waiting = take(worker, room, evict)
else
  recall()
  for id, held in pairs(leases) do
    local job = load_job(id)
    if job then claims[#claims + 1] = describe(job, held.epoch) end
  end
  table.sort(claims, function(a, b) return a[7] < b[7] or (a[7] == b[7] and a[1] < b[1]) end)
end

local controls = {}
for i, entry in ipairs(call('XRANGE', control, '(' .. control_after, '+', 'COUNT', CONTROLS_MAX)) do
  controls[i] = {entry[1], unpack(entry[2])}
end
if beat_ttl_ms > 0 then
  call('SET', prefix .. 'hb:' .. worker, beat_info, 'PX', beat_ttl_ms)
  if snapshot ~= '' then call('SET', prefix .. 'live:' .. worker, snapshot, 'PX', beat_ttl_ms) end
end

return {status, now, table.concat(row_codes), table.concat(end_codes), claims, controls, bell_id, waiting,
  #victim > 0 and (victim_left or not lease(victim[1], victim[2])) and 1 or 0}
