-- a: id, epoch, from_line, next_line, next_offset, output_part, error_part (artifacts; '' for none)
-- Moves the answers of the lines from `from_line` up to `next_line` (left out) into parts, which hold them already.
-- Returns 1, or 0 where the claim does not hold.

local batch = batch_key(a.id)
if not is_held() then return 0 end
if tonumber(call('HGET', batch, 'next_line')) ~= a.from_line then return 0 end
for line = a.from_line, a.next_line - 1 do call('HDEL', results_key(a.id), line) end
for _, kind in ipairs({ 'output_part', 'error_part' }) do
  if a[kind] ~= '' then
    local parts = call('HGET', batch, kind .. 's')
    call('HSET', batch, kind .. 's', parts and parts .. ' ' .. a[kind] or a[kind])
  end
end
call('HSET', batch, 'next_line', a.next_line, 'next_offset', a.next_offset)
return 1
