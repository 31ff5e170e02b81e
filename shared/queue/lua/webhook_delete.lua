-- a: id, tenant
-- Forgets an endpoint. Its deliveries end when they are due. Returns 1, or 0 if the tenant has none with this id.

if call('HGET', endpoint_key(a.id), 'tenant') ~= a.tenant then return 0 end
call('DEL', endpoint_key(a.id), P .. 'attempts:' .. a.id)
call('ZREM', P .. 'owned:' .. a.tenant, a.id)
return 1
