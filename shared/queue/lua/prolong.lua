-- a: id, lives_ms
-- Lets an artifact live for at least `lives_ms` from now. Returns 1, or 0 if it is not there.

if not lives(a.id) then return 0 end
local expires_ms = math.max(now + a.lives_ms, tonumber(call('HGET', artifact_key(a.id), 'expires_ms')))
call('HSET', artifact_key(a.id), 'expires_ms', expires_ms)
call('ZADD', expiring, expires_ms, a.id)
return 1
