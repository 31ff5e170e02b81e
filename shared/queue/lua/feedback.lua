-- a: request, tenant, score, comment
-- Notes what the tenant says of a request, in the place of what it said before. Returns {experiment, arm}, or {} for a
-- request that is of no experiment, too old, or another tenant's.

local assigned = P .. 'assigned:' .. a.request
local tenant, experiment, arm, entry = unpack(call('HMGET', assigned, 'tenant', 'experiment', 'arm', 'entry'))
if tenant ~= a.tenant then return {} end

local feedback = P .. 'feedback:' .. experiment
if entry then call('XDEL', feedback, entry) end
entry = note_of(feedback, 'request', a.request, 'arm', arm, 'score', a.score, 'comment', a.comment)
call('HSET', assigned, 'entry', entry)
return { experiment, arm }
