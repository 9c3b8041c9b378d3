"""TensorRT for RTX: compiles engines ahead of time, and runs them.

Compiling needs no GPU and no driver: `builder` asks for neither. `runtime` runs engines, and asks for the driver first.
"""
