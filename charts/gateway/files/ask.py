"""`helm test`: the URL answers. Whose certificate it shows is for clients to say."""

import os
import ssl
from urllib.request import urlopen

print(urlopen(os.environ["URL"], timeout=20, context=ssl._create_unverified_context()).read())
