-- Lease sessions and read them: all of them, or none.
--
-- KEYS    three for each session: its data, its lease, and what tells that the token let go of it
-- ARGV    1: the token of who asks, a blank, and the number of this request, of 15 digits
--         2: how long the leases last, in milliseconds
--         3: "!" if the caller has waited, so that others may be waiting too; else ""
--         then, for none or each session: the lease that may be taken although it isn't over, or ""
-- Returns an array: ARGV[1], 0, what is stored of each session, nil where nothing is; or ARGV[1],
--         the place, from 1, of the first session that somebody else has leased, and that lease.
--
-- A lease is a string: ARGV[1] of the request that took it; a blank and the number of the last
-- request that made it last longer; and "!" once somebody came to wait for it, so that whoever lets
-- go of it knows whether to wake anybody.
--
-- Requests of one token have numbers that grow. Those that come after the token let go, although
-- they have a smaller number, are late copies, which a client sent again when it got no answer.
local request, milliseconds, flag = ARGV[1], ARGV[2], ARGV[3]
local token = string.sub(request, 1, -16)

local found, marks = {request, 0}, {}
for i = 1, #KEYS, 3 do
  local place = (i + 2) / 3
  local data, lease, mark = unpack(redis.call('MGET', KEYS[i], KEYS[i + 1], KEYS[i + 2]))
  if lease and string.sub(lease, 1, #token) ~= token then
    local bare = string.match(lease, '^(.-)!?$')
    if bare ~= ARGV[3 + place] then
      if bare == lease then
        redis.call('APPEND', KEYS[i + 1], '!') -- unlike SET, it leaves the expiry as it is
      end
      return {request, place, bare}
    end
  end
  if mark and math.abs(tonumber(mark)) > tonumber(string.sub(request, -15)) then
    return redis.error_reply('ERR a late copy of a request')
  end
  -- To MGET, a key of a wrong type is one that isn't there. To GET it is an error, which comes
  -- before the first lease is taken.
  found[place + 2] = data or redis.call('GET', KEYS[i])
  marks[i] = mark
end

for i = 1, #KEYS, 3 do
  redis.call('SET', KEYS[i + 1], request .. flag, 'PX', milliseconds)
  if marks[i] then
    redis.call('DEL', KEYS[i + 2]) -- the token has it once more
  end
end
return found
