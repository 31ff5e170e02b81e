-- a: id, epoch (-1: whoever holds the batch), from [statuses], to, fields {name = value}, kept_ms (0: it goes on)
-- Moves a batch to another status. One that ends is kept for `kept_ms`, and its end is an event (that of an evaluation
-- is none). Returns 1, or 0 if it has another status or the claim does not hold.

local batch = batch_key(a.id)
if a.epoch >= 0 and not is_held() then return 0 end
local status, tenant = unpack(call('HMGET', batch, 'status', 'tenant'))
local may_move = false
for _, from in ipairs(a.from) do may_move = may_move or from == status end
if not may_move then return 0 end
call('HSET', batch, 'status', a.to, 'at:' .. a.to, now)
for name, value in pairs(a.fields) do call('HSET', batch, name, value) end
if a.kept_ms > 0 then
  call('ZREM', active, a.id)
  call('SREM', P .. 'open:' .. tenant, a.id)
  call('DEL', results_key(a.id), P .. 'duplicates:' .. a.id)
  call('PEXPIRE', batch, a.kept_ms)
  local digits = string.match(a.id, '^batch_(%x+)$')
  if digits then put_out('evt_' .. digits, tenant, 'batch.' .. a.to, a.id) end
end
return 1
