-- a: id, tenant, fields {name = value}, most
-- Writes the record of a new endpoint. Returns 'made' (now or before), or 'full' if the tenant has `most` of them.

local endpoint, owned = endpoint_key(a.id), P .. 'owned:' .. a.tenant
if call('EXISTS', endpoint) == 1 then return 'made' end
if call('ZCARD', owned) >= a.most then return 'full' end
call('HSET', endpoint, 'tenant', a.tenant, 'status', 'enabled', 'created_ms', now, 'updated_ms', now)
for name, value in pairs(a.fields) do call('HSET', endpoint, name, value) end
call('ZADD', owned, now, a.id)
return 'made'
