"""Files of tensors, looked into without torch: safetensors, and what `torch.save` writes.

In: bytes, of which a bounded part is read. Out: names, dtypes and shapes; no code of a file runs.
Start at `tensor_headers` (safetensors) or `pickled_tensors` (torch).
"""
