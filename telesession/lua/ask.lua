-- Carry out one command that changes nothing.
--
-- KEYS    those that the command reads
-- ARGV    1: the number of this request
--         then the command and its arguments
-- Returns an array: the number of this request, and what the command returns.
return {ARGV[1], redis.call(unpack(ARGV, 2))}
