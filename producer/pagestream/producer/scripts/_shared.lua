-- What every script of a queue shares: names and time.
-- The loader puts the texts that `lua.py` names before each script, so that `call`, `now`, `load_job`, …
-- are in scope. A script gets no more of them than it may use: the server makes each function anew at
-- each call.

local call = redis.call
local prefix = string.match(KEYS[1] or '', '^{ps:[^}]+}:')
if not prefix then
  return redis.error_reply('INVALID KEYS[1] must be a key of a queue: {ps:<queue>}:…')
end

local GROUP, RETURNED, SUSPECTED = 'workers', 'returned', 'suspected'
local LANES = {'high', 'normal', 'low'}

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function digits(number)
  return string.format('%.0f', number)
end

-- The value of a field in the flat list that a stream entry is.
local function field(entry, name)
  for i = 1, #entry, 2 do
    if entry[i] == name then return entry[i + 1] end
  end
end

-- Tell workers that something may be waiting.
local function ring()
  call('XADD', prefix .. 'bell', 'MAXLEN', 1, '*', 'ring', '')
end
