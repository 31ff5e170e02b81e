-- a: id, epoch, lease_ms (0: give the batch back)
-- Returns the status of a batch whose claim still holds, and the milliseconds left to its end; {} where it does not.

if not is_held() then return {} end
call('ZADD', active, 'XX', now + a.lease_ms, a.id)
local status, expires_ms = unpack(call('HMGET', batch_key(a.id), 'status', 'expires_ms'))
return { status, tonumber(expires_ms) - now }
