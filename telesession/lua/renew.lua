-- Renew leases: all of them, or none.
--
-- KEYS    one for each session: its lease (see acquire.lua)
-- ARGV    1: the holder's token, a blank, and the number of this request
--         2: how long they last from now, in milliseconds
-- Returns an array: ARGV[1], and 1, or 0 if the token lost one of the leases.
local request, milliseconds = ARGV[1], ARGV[2]
local token, number = string.sub(request, 1, -16), string.sub(request, -15)

local renewed = {}
for i, key in ipairs(KEYS) do
  local lease = redis.call('GET', key) or ''
  if string.sub(lease, 1, #token) ~= token then
    return {request, 0}
  end
  local flag = string.sub(lease, -1) == '!' and '!' or ''
  renewed[i] = string.sub(lease, 1, #request) .. ' ' .. number .. flag
end
-- A server without free memory refuses a script's first write if it is a SET, not if it is PEXPIRE.
for i, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, milliseconds)
  redis.call('SET', key, renewed[i], 'PX', milliseconds)
end
return {request, 1}
