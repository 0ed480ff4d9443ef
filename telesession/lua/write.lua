-- Write sessions and let go of them: all of them, or nothing.
--
-- KEYS    three for each session: its data, its lease, the list that wakes who waits for it
-- ARGV    1: the token of the leases' holder
--         2: "1" to let go of the leases, "0" to keep them
--         then three for each session:
--         what to do: "set", "del", or "" to leave it as it is
--         its new data
--         in how many milliseconds it expires, "" for never
-- Returns 1, or 0, with nothing done, if one of the leases is over.
local token, release = ARGV[1], ARGV[2] == '1'

local holders = {}
for i = 2, #KEYS, 3 do
  holders[i] = redis.call('GET', KEYS[i]) or ''
  if string.sub(holders[i], 1, #token) ~= token then
    return 0
  end
end

-- What takes memory first of all, since a server that is out of it refuses a script's first write
-- only.
for i = 1, #KEYS, 3 do
  local action, data, milliseconds = ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if action == 'set' and milliseconds ~= '' then
    redis.call('SET', KEYS[i], data, 'PX', milliseconds)
  elseif action == 'set' then
    redis.call('SET', KEYS[i], data)
  end
end
for i = 1, #KEYS, 3 do
  if ARGV[i + 2] == 'del' then
    redis.call('DEL', KEYS[i])
  end
end

if release then
  for i, holder in pairs(holders) do
    local lease, wake = KEYS[i], KEYS[i + 1]
    redis.call('DEL', lease)
    if string.sub(holder, -1) == '!' then
      if redis.call('EXISTS', wake) == 0 then
        redis.call('RPUSH', wake, '') -- the server wakes who has waited longest
      end
      redis.call('PEXPIRE', wake, 1000) -- nobody may be there any more
    end
  end
end
return 1
