-- a: kept [key of answers or duplicates, id of its batch], dry_run
-- Removes what is kept only while a batch is open, where it has ended or is gone. Returns how many keys.

local num_dropped = 0
for _, kept in ipairs(a.kept) do
  local name, id = unpack(kept)
  if not call('ZSCORE', active, id) and call('EXISTS', name) == 1 then
    num_dropped = num_dropped + 1
    if not a.dry_run then call('DEL', name) end
  end
end
return num_dropped
