-- Carry out one command that changes nothing.
--
-- KEYS    those that the command reads
-- ARGV    1: what tells this request from all others
--         then the command and its arguments
-- Returns an array: ARGV[1], and what the command returns.
return {ARGV[1], redis.call(unpack(ARGV, 2))}
