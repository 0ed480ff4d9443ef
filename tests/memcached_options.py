"""Options with which clients of memcached hide no failure."""

import math

RIGHT = {"ignore_exc": False, "default_noreply": False}
ALWAYS = {"retry_attempts": math.inf, "retry_timeout": -math.inf}
