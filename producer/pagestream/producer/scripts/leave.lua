-- A worker ends of its own will: jobs it still holds go back, and its keys go.
-- KEYS[1] {ps:<queue>}:step:<worker>   ARGV worker, incarnation
-- -> jobs put back

local worker, incarnation = ARGV[1], ARGV[2]
local step = call('GET', prefix .. 'step:' .. worker)
if not step or string.match(step, '^(.*):%d+$') ~= incarnation then return 0 end
return (recover(worker, nil))
