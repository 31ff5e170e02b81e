-- a: lease_ms
-- Claims the batch that has waited longest to be advanced, under a new epoch. Returns {id, epoch}, or {} if none waits.

while true do
  local id = call('ZRANGEBYSCORE', active, '-inf', now, 'LIMIT', 0, 1)[1]
  if not id then return {} end
  if call('EXISTS', batch_key(id)) == 1 then
    call('ZADD', active, now + a.lease_ms, id)
    return { id, call('HINCRBY', batch_key(id), 'epoch', 1) }
  end
  call('ZREM', active, id)
end
