-- a: model, class, tenants, dry_run
-- Forgets virtual times that no longer matter: those of tenants that have no open job and would start at the class's
-- own time anyway. Returns how many.

local served, turns = class_key('served', a.model, a.class), class_key('turns', a.model, a.class)
local clock, forgotten = tonumber(call('HGET', served, '*') or 0), 0
for _, tenant in ipairs(a.tenants) do
  local at = tenant ~= '*' and call('HGET', served, tenant)
  local is_idle = at and not call('ZSCORE', turns, tenant) and call('EXISTS', P .. 'open:' .. tenant) == 0
  if is_idle and tonumber(at) <= clock then
    forgotten = forgotten + 1
    if not a.dry_run then call('HDEL', served, tenant) end
  end
end
return forgotten
