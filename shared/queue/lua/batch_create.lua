-- a: id, tenant, spec, window_ms, most_open
-- Writes the record of a new batch. Returns 'made' (now or before), 'full' if the tenant has `most_open` that have not
-- ended, or 'conflict' if the id is that of another batch.

local known = call('HGET', batch_key(a.id), 'spec')
if known then return known == a.spec and 'made' or 'conflict' end
local open = P .. 'open:' .. a.tenant
if call('SCARD', open) >= a.most_open then return 'full' end
call('HSET', batch_key(a.id), 'tenant', a.tenant, 'spec', a.spec, 'status', 'validating', 'ending', '', 'epoch', 0,
  'created_ms', now, 'expires_ms', now + a.window_ms, 'total', 0, 'completed', 0, 'failed', 0, 'prompt_tokens', 0,
  'completion_tokens', 0, 'cached_tokens', 0, 'next_line', 1, 'next_offset', 0)
call('ZADD', P .. 'owned:' .. a.tenant, now, a.id)
call('SADD', open, a.id)
call('ZADD', active, now, a.id)
return 'made'
