-- a: jobs [id], dry_run
-- Settles the budgets of jobs that are known to be over, and were not settled when they ended. Returns how many.

local leaked = 0
for _, id in ipairs(a.jobs) do
  if a.dry_run then
    leaked = leaked + call('HEXISTS', P .. 'budgeted', id)
  elseif settle_budget(id) then
    leaked = leaked + 1
  end
end
return leaked
