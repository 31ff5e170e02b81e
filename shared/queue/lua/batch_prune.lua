-- a: list (a tenant's key), is_sorted, batches [id], dry_run
-- Takes batches that have no record any more off a tenant's list. Returns how many.

local num_gone = 0
for _, id in ipairs(a.batches) do
  if call('EXISTS', batch_key(id)) == 0 then
    num_gone = num_gone + 1
    if not a.dry_run then call(a.is_sorted and 'ZREM' or 'SREM', a.list, id) end
  end
end
return num_gone
