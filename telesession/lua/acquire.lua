-- Lease sessions and read them: all of them, or none.
--
-- KEYS    three for each session: its data, its lease, and the token's mark that it released it
-- ARGV    1: the caller's token, a blank, and the number of this request, of 15 digits
--         2: how long the leases last, in milliseconds
--         3: "!" if the caller has waited, so that other callers may wait too; else ""
--         then, for none or each session: the lease that may be taken although it isn't over, or ""
-- Returns an array: ARGV[1], 0, the data of each session, nil where none is stored; or ARGV[1],
--         the place, from 1, of the first session that another token has leased, and that lease.
--
-- A lease is a string: ARGV[1] of the request that took it; after a renewal, a blank and the number
-- of the renewing request; and "!" once another token waits for it, so that its release wakes it.
--
-- The numbers of one token's requests grow. A request that comes after the token's release, with a
-- smaller number than that, is a late copy: the client sent it again when it got no answer.
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
  -- MGET takes a key of another type as missing. GET raises an error, before any lease is taken.
  found[place + 2] = data or redis.call('GET', KEYS[i])
  marks[i] = mark
end

for i = 1, #KEYS, 3 do
  redis.call('SET', KEYS[i + 1], request .. flag, 'PX', milliseconds)
  if marks[i] then
    redis.call('DEL', KEYS[i + 2]) -- the token holds the session again
  end
end
return found
