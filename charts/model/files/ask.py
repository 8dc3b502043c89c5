"""`helm test`: the gateway knows the model and, if it may, has it answer."""

import json
import os
import ssl
from urllib.parse import quote
from urllib.request import Request, urlopen

gateway, model, key = (os.environ.get(name, "") for name in ("GATEWAY", "MODEL", "KEY"))
trusted = ssl.create_default_context(cafile=os.environ.get("CA"))
print(urlopen(f"{gateway}/scale/{quote(model)}", timeout=20, context=trusted).read().decode())
if os.environ.get("ANSWER"):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    asked = Request(f"{gateway}/v1/chat/completions", json.dumps(body).encode(), headers)
    print(urlopen(asked, context=trusted).read().decode())
