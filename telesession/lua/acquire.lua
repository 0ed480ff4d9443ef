-- Lease sessions and read them: all of them, or none.
--
-- KEYS    two for each session: its data, its lease
-- ARGV    1: the token of who asks
--         2: how long the leases last, in milliseconds
--         3: "1" if the caller has waited, so that others may be waiting too; else "0"
-- Returns an array of what is stored of each session, nil where nothing is;
--         or the number, from 1, of the first session that somebody else has leased.
--
-- A lease is a string: the token of its holder, followed by "!" for each time that somebody came
-- to wait for it. So whoever lets go of it knows whether to wake anybody.
local token, milliseconds, waited = ARGV[1], ARGV[2], ARGV[3] == '1'

for i = 2, #KEYS, 2 do
  local holder = redis.call('GET', KEYS[i])
  if holder and string.sub(holder, 1, #token) ~= token then
    if string.sub(holder, -1) ~= '!' then
      redis.call('APPEND', KEYS[i], '!') -- unlike SET, it leaves the expiry as it is
    end
    return i / 2
  end
end

-- GET, since MGET would take a key of a wrong type for one that isn't there; and all of them before
-- the first lease is taken, since such a key is an error, after which no lease may be left.
local found = {}
for i = 1, #KEYS, 2 do
  found[#found + 1] = redis.call('GET', KEYS[i])
end
for i = 2, #KEYS, 2 do
  redis.call('SET', KEYS[i], waited and token .. '!' or token, 'PX', milliseconds)
end
return found
