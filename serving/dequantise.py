"""Run inside the engine's environment: a quantised GGUF file becomes an ordinary Hugging Face
folder.

`python dequantise.py FOLDER FILE OUT`. vLLM serves OUT as it would any model: bfloat16 weights,
tokenizer and chat template, all of which the GGUF file carries.
"""

from __future__ import annotations

import sys
from typing import Any


def main(folder: str, file: str, out: str) -> None:
    """Convert `folder`/`file` into the new folder `out`."""
    import torch
    import transformers

    library: Any = transformers
    model = library.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        quantization_config=library.GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(out)
    library.AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
