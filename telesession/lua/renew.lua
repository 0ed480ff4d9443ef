-- Have leases last: all of them, or none.
--
-- KEYS    one for each session: its lease
-- ARGV    1: the token of their holder
--         2: how long they last from now, in milliseconds
-- Returns 1, or 0 if one of the leases is over.
local token, milliseconds = ARGV[1], ARGV[2]

for _, lease in ipairs(KEYS) do
  if string.sub(redis.call('GET', lease) or '', 1, #token) ~= token then
    return 0
  end
end
for _, lease in ipairs(KEYS) do
  redis.call('PEXPIRE', lease, milliseconds)
end
return 1
