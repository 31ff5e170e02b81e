-- a: request, follower_id
-- Notes one more follower of a request. Returns 1, or 0 for one that has expired.

local request = P .. 'request:' .. a.request
if call('EXISTS', request) == 0 then return 0 end
call('HSET', request, 'follower:' .. a.follower_id, now)
return 1
