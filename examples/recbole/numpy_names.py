"""RecBole 1.2.1 asks for aliases that NumPy 2 took away; importing this first gives them back."""

import numpy as np

for _name, _now in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
    if not hasattr(np, _name):
        setattr(np, _name, _now)
