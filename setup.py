"""The metadata is in setup.cfg, but for the long description.

It is README without its picture, and with the names of other files where README has links to them:
the package index would look for both beside its own page.
"""

import re
from pathlib import Path

from setuptools import setup

README = Path(__file__).with_name("README.rst").read_text(encoding="utf-8")
LINK = r"`([^`<]+?)\s+<(?!https?:)[^>]+>`_"
PICTURE = r"^\.\. image::.*\n(?: +:.*\n)*\n"

setup(long_description=re.sub(LINK, r"``\1``", re.sub(PICTURE, "", README, flags=re.M)))
