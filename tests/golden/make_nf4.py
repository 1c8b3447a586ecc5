"""Writes nf4.safetensors: 4-bit codes, 8-bit constants and some dequantized rows of a matrix, by bitsandbytes.

The matrix is that of `golden_matrix` in tests/test_nf4.py. pip install torch bitsandbytes safetensors &&
python tests/golden/make_nf4.py
"""

from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit
from safetensors.torch import save_file

rows, columns = 131, 128
i = torch.arange(rows * columns)
w = (i * 7919 % 2003 + i * 104729 % 1999 + i * 1299709 % 1997 - 2990) / 1024
w = w.view(rows, columns) * (1 + torch.arange(rows) % 7)[:, None] / 4
w[5, :64] = 0  # a block of zeros
codes, state = quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
tensors = {
    "weight": codes.flatten(),
    "absmax": state.absmax,
    "scale": state.state2.absmax,
    "offset": state.offset,
    "rows": dequantize_4bit(codes, state).view(rows, columns)[[0, 5, 130]],  # the last one has the second s
    "NF4": get_4bit_type("nf4", "cpu"),
    "DYNAMIC": create_dynamic_map(),
}
save_file(tensors, Path(__file__).parent / "nf4.safetensors", {"version": bitsandbytes.__version__})
