-- a: id, tenant, fields {name = value}, old_ms (for so long the secret before also signs, if there is a new one)
-- Changes an endpoint, and enables it. Returns 1, or 0 if the tenant has none with this id.

local endpoint = endpoint_key(a.id)
local tenant, secret = unpack(call('HMGET', endpoint, 'tenant', 'secret'))
if tenant ~= a.tenant then return 0 end
if a.fields.secret and a.fields.secret ~= secret then
  if a.old_ms > 0 then
    call('HSET', endpoint, 'old_secret', secret, 'old_until_ms', now + a.old_ms)
  else
    call('HDEL', endpoint, 'old_secret', 'old_until_ms')
  end
end
call('HSET', endpoint, 'status', 'enabled', 'updated_ms', now)
call('HDEL', endpoint, 'reason', 'failing_ms')
for name, value in pairs(a.fields) do call('HSET', endpoint, name, value) end
return 1
