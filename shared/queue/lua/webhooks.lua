-- Shared by the scripts of webhooks: their keys, and the end of a delivery.

local pending, due = P .. 'pending', P .. 'due'
-- The record of a delivery outlives it, so that an event that is read from its outbox once more is not delivered again.
local OVER_MS = 3600000

local function endpoint_key(id) return P .. 'endpoint:' .. id end
local function delivery_key(name) return P .. 'delivery:' .. name end

local function end_delivery(name)
  call('ZREM', pending, name)
  call('ZREM', due, name)
  call('PEXPIRE', delivery_key(name), OVER_MS)
end
