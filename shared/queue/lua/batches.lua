-- Shared by the scripts of batches: their keys, and the fence.

local active = P .. 'active'

local function batch_key(id) return P .. 'batch:' .. id end
local function results_key(id) return P .. 'results:' .. id end

-- Returns whether the caller still holds the batch: nobody has claimed it since.
local function is_held() return tonumber(call('HGET', batch_key(a.id), 'epoch')) == a.epoch end
