"""What TensorRT and TensorRT for RTX share. It imports neither: the module of either is handed in as `trt`."""
