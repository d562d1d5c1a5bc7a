"""The arithmetic and nothing else: gather and pool, row update with gates, counting, hashing.

``registry`` is the one door: it picks the back end by device and dtype. ``reference`` is the truth in plain PyTorch,
``cpu`` the Numba kernels, ``cuda`` (with its ``cuda_*`` files) the Triton kernels.
"""
