"""`helm test`: the gateway knows the model and, if it may, has it answer."""

import json
import os
from urllib.request import Request, urlopen

gateway, model, key = (os.environ.get(name, "") for name in ("GATEWAY", "MODEL", "KEY"))
print(urlopen(f"{gateway}/scale/{model}", timeout=20).read().decode())
if os.environ.get("ANSWER"):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    url = f"{gateway}/v1/chat/completions"
    print(urlopen(Request(url, json.dumps(body).encode(), headers)).read().decode())
