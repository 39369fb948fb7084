"""The TensorRT libraries, behind one protocol. Nothing outside this folder imports TensorRT."""
