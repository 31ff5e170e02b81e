-- a: id, epoch, answers [{line, outcome (completed | failed), text, prompt_tokens, completion_tokens, cached_tokens}]
-- Notes the answers of lines, each once. Returns how many were new; -1 where the claim does not hold.

if not is_held() then return -1 end
local batch, results, noted = batch_key(a.id), results_key(a.id), 0
local next_line = tonumber(call('HGET', batch, 'next_line'))
for _, answer in ipairs(a.answers) do
  if answer.line >= next_line and call('HSETNX', results, answer.line, answer.text) == 1 then
    noted = noted + 1
    call('HINCRBY', batch, answer.outcome, 1)
    for _, kind in ipairs({ 'prompt_tokens', 'completion_tokens', 'cached_tokens' }) do
      if answer[kind] > 0 then call('HINCRBY', batch, kind, answer[kind]) end
    end
  end
end
return noted
