-- Who runs next, and the claim: `take(worker, room, evict)`, for step.lua.
-- A job is looked at where it waits and claimed only if it fits; nothing is read ahead.

local AGE_MS = 30000 -- a job that has waited this long counts one class higher, again and again;
-- it may then overtake better lanes, in as many slots of a worker as are kept for such jobs
local ISOLATION_MS = 5000 -- a worker that empties itself for suspects and dies is followed by another
local DROPS_MAX = 256 -- entries that cannot be claimed (expired, malformed) handled in one call
local WORDS_MAX, WORD_BYTES_MAX = 32, 1024 -- of a malformed entry that are kept

local drops = DROPS_MAX
local cursors = {} -- lane stream -> last entry the group has delivered

local function delivered(stream)
  for _, group in ipairs(call('XINFO', 'GROUPS', stream)) do
    if field(group, 'name') == GROUP then return field(group, 'last-delivered-id') end
  end
end

-- The entry a tenant would be served next, not yet taken: its shelf first, for what is there is
-- older than anything undelivered.
local function next_entry(lane, tenant)
  local stream = prefix .. 'jobs:' .. lane .. ':' .. tenant
  local shelf = redis.pcall('XPENDING', stream, GROUP, '-', '+', 1, RETURNED)
  if shelf.err then
    if not string.find(shelf.err, 'NOGROUP', 1, true) or call('EXISTS', stream) == 0 then return nil end
    call('XGROUP', 'CREATE', stream, GROUP, '0') -- somebody deleted the group
    shelf = {}
  end
  local shelved, entry = shelf[1] ~= nil, nil
  if shelved then
    entry = call('XRANGE', stream, shelf[1][1], shelf[1][1])[1] or {shelf[1][1], {}}
  else
    cursors[stream] = cursors[stream] or delivered(stream)
    entry = call('XRANGE', stream, '(' .. cursors[stream], '+', 'COUNT', 1)[1]
    if not entry then return nil end
  end
  local head = {
    stream = stream, lane = lane, tenant = tenant, shelved = shelved,
    entry = entry[1], fields = entry[2], job = load_job(field(entry[2], 'id') or ''),
  }
  return head
end

-- Deliver a head: off the shelf, or from the stream, to a consumer's pending list.
local function deliver(head, consumer)
  if head.shelved then
    call('XCLAIM', head.stream, GROUP, consumer, 0, head.entry, 'JUSTID')
  else
    call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', head.stream, '>')
    cursors[head.stream] = head.entry
  end
end

-- An entry that nobody accepted (written past submit): keep it where a person can see it.
local function bury_malformed(head)
  local words = {}
  for i = 1, math.min(#head.fields, WORDS_MAX) do
    words[i] = string.sub(head.fields[i], 1, WORD_BYTES_MAX)
  end
  call('XADD', prefix .. 'dead', 'MAXLEN', '~', DEAD_LETTERS_MAX, '*', 'id', '', 'reason', 'malformed',
    'message', 'a lane entry without a job record', 'lane', head.lane, 'tenant', head.tenant,
    'entry', cjson.encode(words))
end

-- True if the head waits for a worker; otherwise it has been dealt with.
local function claimable(head, worker)
  local job = head.job
  if job and job.entry == head.entry and job.state == 'running' then
    deliver(head, job.owner) -- delivered anew, by a group that was made again
    return false
  end
  if job and job.entry == head.entry and job.state == 'queued' and job.crashes >= SUSPECT_CRASHES then
    if not head.shelved then deliver(head, worker) end
    put_back(job) -- the same of a suspect
    return false
  end
  local waits = job and job.entry == head.entry and not FINISHED[job.state]
  local late = waits and deadline_passed(job)
  if waits and not job.cancel and not late then return true end

  if not head.shelved then deliver(head, worker) end
  cursors[head.stream] = nil -- the stream may go with its last entry
  if not waits then
    if not job then bury_malformed(head) end
    remove_entry(head.stream, head.lane, head.tenant, head.entry)
  elseif job.cancel then
    finish_here(job, 'cancelled', 'cancelled')
  else
    finish_here(job, 'expired', 'expired', 'expired', 'its deadline passed in the queue')
  end
  return false
end

local function lane_head(lane, worker)
  local ready = prefix .. 'ready:' .. lane
  while drops > 0 do
    local tenant = call('ZRANGE', ready, 0, 0)[1]
    if not tenant then return false end
    local head = next_entry(lane, tenant)
    if not head then
      call('ZREM', ready, tenant)
    elseif claimable(head, worker) then
      local ms, sequence = string.match(head.entry, '^(%d+)-(%d+)$')
      head.ms, head.sequence = tonumber(ms), tonumber(sequence)
      return head
    end
    drops = drops - 1
  end
  ring() -- more may wait behind what was dropped: the next call goes on
  return false
end

local heads = {} -- lane -> its next job, or false: looked up once until it is taken

-- The job to run next: that of the best lane; or, where age may decide, that of the highest class
-- (age lifts it), then of the longest wait. The second result is true if only age put it first.
local function best_head(worker, age_decides)
  local first, best, best_class
  for i, lane in ipairs(LANES) do
    if heads[lane] == nil then heads[lane] = lane_head(lane, worker) end
    local head = heads[lane]
    first = first or head
    if head then
      local class = math.max(1, i - math.floor((now - head.ms) / AGE_MS))
      local older = best and (head.ms < best.ms or (head.ms == best.ms and head.sequence < best.sequence))
      if not best or class < best_class or (class == best_class and older) then
        best, best_class = head, class
      end
    end
  end
  if not age_decides then return first, false end
  return best, best ~= first
end

local function describe(job, epoch)
  local more = call('HMGET', prefix .. 'job:' .. job.id, 'payload', 'queued_ms', 'aged', 'traceparent',
    'tracestate')
  return {job.id, epoch, job.crashes, job.lane, job.tenant, more[1] or '', tonumber(more[2] or 0),
    job.deadline_ms or '', job.mirror or '', more[3] or '', more[4] or '', more[5] or ''}
end

local function claim(head, worker, aged)
  local job = head.job
  deliver(head, worker)
  local epoch = job.epoch + 1
  local start = {'event', 'start', 'worker', worker}
  local code = append(job, epoch .. '-0', start)
  if code == 'd' then -- the reply is ahead of the record: go past it
    epoch = last_entry(job.id) + 1
    code = append(job, epoch .. '-0', start)
  end
  if code == 'g' then -- the reader deleted the reply
    finish(job, {epoch = epoch, offset = 1, state = 'cancelled', reason = 'cancelled'})
    cursors[head.stream] = nil
    return nil
  end
  call('HSET', prefix .. 'job:' .. job.id, 'state', 'running', 'epoch', epoch, 'owner', worker,
    'claimed_ms', digits(now), 'charged', 0, 'aged', aged and '1' or '')
  call('HSET', prefix .. 'running:' .. worker, job.id, lease_of(job, epoch))
  return describe(job, epoch)
end

-- A suspect that is due, for a worker that has nothing else; it is not given more beside it. Since
-- a queue may keep every worker busy for ever, one at a time empties itself for the suspects.
-- Returns the claim, and whether this worker is the one that takes nothing now.
local function take_suspect(worker)
  for _, id in ipairs(call('ZRANGEBYSCORE', prefix .. 'suspects', '-inf', now, 'LIMIT', 0, 16)) do
    local job = load_job(id)
    local waits = job and job.state == 'queued' and job.crashes >= SUSPECT_CRASHES
    if waits and call('HLEN', prefix .. 'running:' .. worker) > 0 then
      local isolation = prefix .. 'isolation'
      if (call('GET', isolation) or worker) ~= worker then return nil, false end
      call('SET', isolation, worker, 'PX', ISOLATION_MS)
      return nil, true
    end
    call('ZREM', prefix .. 'suspects', id)
    if waits and deadline_passed(job) then
      finish_here(job, 'expired', 'expired', 'expired', 'its deadline passed in the queue')
    elseif waits then
      assign(job, RETURNED)
      local head = {stream = job.stream, entry = job.entry, shelved = true, job = job}
      local claimed = claim(head, worker, false)
      if claimed then return claimed, false end
    end
  end
  return nil, false
end

-- What tenants were served in this call, as far as is known: the most their prompts may take. It
-- makes them take turns here, and is taken back at the end, for they are charged for what is computed.
-- Otherwise whoever comes in between would start level with a tenant that is then given back most.
-- A tenant that is alone has every turn.
local advances, is_alone = {}, nil

local function advance(tenant, tokens)
  if is_alone == nil then is_alone = call('ZCARD', prefix .. 'served') == 1 end
  if is_alone then return end
  advances[tenant] = (advances[tenant] or 0) + tokens
  charge(tenant, tokens)
  for lane, head in pairs(heads) do -- where it stood first, another may
    if head and head.tenant == tenant then heads[lane] = nil end
  end
end

local function take_all(worker, room, evict)
  local claims = {}
  if call('EXISTS', prefix .. 'suspects', unpack(READY)) == 0 then return claims, {} end
  if room.slots > 0 and call('EXISTS', prefix .. 'suspects') == 1 then
    local suspect, is_emptying = take_suspect(worker)
    if suspect or is_emptying then return {suspect}, {} end
  end
  local slots, tokens, aged_slots = room.slots, room.tokens, room.aged_slots
  while true do
    local head, aged = best_head(worker, aged_slots > 0)
    if not head then return claims, {} end
    local need = math.min(tonumber(head.job.tokens_max or 0), room.job_tokens_max)
    -- Nothing overtakes a job that does not fit: the room it needs would never come.
    if slots < 1 or need > tokens then
      local freed = evict(head)
      if freed then
        slots, tokens = slots + 1, tokens + freed
        heads = {} -- what was taken out waits now, and may be next
      end
      if slots < 1 or need > tokens then return claims, {head.lane, head.tenant, need} end
    end
    local claimed = claim(head, worker, aged)
    heads[head.lane] = nil
    if claimed then
      claims[#claims + 1] = claimed
      slots, tokens = slots - 1, tokens - need
      if aged then aged_slots = aged_slots - 1 end
      advance(head.tenant, need)
    end
  end
end

-- Claim the best jobs that fit into `room`: slots, tokens, job_tokens_max, aged_slots. `evict(head)`
-- may make room for one that does not, and says for how many tokens. Returns claims, and
-- [lane, tenant, tokens] of the best that still waits.
local function take(worker, room, evict)
  local claims, waiting = take_all(worker, room, evict)
  for tenant, tokens in pairs(advances) do charge(tenant, -tokens) end
  return claims, waiting
end
