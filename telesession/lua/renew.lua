-- Have leases last: all of them, or none.
--
-- KEYS    one for each session: its lease (see acquire.lua)
-- ARGV    1: the number of this request
--         2: the token of their holder
--         3: how long they last from now, in milliseconds
-- Returns an array: the number of this request, and 1, or 0 if one of the leases is over.
local number, token, milliseconds = ARGV[1], ARGV[2], ARGV[3]

local renewed = {}
for i, lease in ipairs(KEYS) do
  local holder, since, waited =
    string.match(redis.call('GET', lease) or '', '^(%S+) (%d+) %d+(!?)$')
  if holder ~= token then
    return {number, 0}
  end
  renewed[i] = token .. ' ' .. since .. ' ' .. number .. waited
end
for i, lease in ipairs(KEYS) do
  redis.call('SET', lease, renewed[i], 'PX', milliseconds)
end
return {number, 1}
