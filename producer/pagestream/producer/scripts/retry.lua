-- Queue a dead letter's job again, under its id and after the tokens its reply has.
-- It is a suspect: it runs alone, and one more death makes it a dead letter again.
-- KEYS[1] {ps:<queue>}:bell   ARGV entry id of the letter
-- -> retried | unknown (no such letter) | taken (another job has the id now) | malformed (no job)

local letter = call('XRANGE', prefix .. 'dead', ARGV[1], ARGV[1])[1]
if not letter then return 'unknown' end
local id = field(letter[2], 'id') or ''
if id == '' then return 'malformed' end
local record, out = prefix .. 'job:' .. id, prefix .. 'out:' .. id
local lane, tenant = field(letter[2], 'lane'), field(letter[2], 'tenant')
local tokens_max = field(letter[2], 'tokens_max')

if call('EXISTS', record) == 1 then
  if call('HGET', record, 'letter') ~= ARGV[1] then return 'taken' end
else -- its retention is over: as it was submitted, without its tokens
  local payload = field(letter[2], 'payload')
  call('HSET', record, 'payload', payload, 'hash', redis.sha1hex(payload), 'lane', lane,
    'tenant', tenant, 'tokens_max', tokens_max, 'queued_ms', digits(now),
    'epoch', field(letter[2], 'epoch'), 'retention_ms', field(letter[2], 'retention_ms'),
    'mirror', field(letter[2], 'mirror'))
  local webhook = field(letter[2], 'webhook') or ''
  if webhook ~= '' then call('HSET', record, 'webhook', webhook) end
  call('DEL', out)
end
if call('EXISTS', out) == 0 then
  call('XADD', out, '0-1', 'event', 'queued')
else
  -- The reply goes on where it ended: its end is none any more.
  local last = call('XREVRANGE', out, '+', '-', 'COUNT', 1)[1]
  if last and field(last[2], 'event') == 'end' then call('XDEL', out, last[1]) end
  call('PERSIST', out)
end
call('PERSIST', record)
call('HDEL', record, 'reason', 'finished_ms', 'letter', 'cancel', 'queue_deadline_ms', 'deadline_ms',
  'reader_due_ms', 'reader_timeout_ms', 'retry_ms', 'last_error')

local stream = prefix .. 'jobs:' .. lane .. ':' .. tenant
if call('EXISTS', stream) == 0 then call('XGROUP', 'CREATE', stream, GROUP, '0', 'MKSTREAM') end
local entry = call('XADD', stream, '*', 'id', id, 'tokens_max', tokens_max)
call('HSET', record, 'crashes', SUSPECT_CRASHES, 'entry', entry, 'state', 'queued', 'owner', '')
put_back(load_job(id))
call('XDEL', prefix .. 'dead', ARGV[1])
ring()
return 'retried'
