"""C++ and CUDA sources, installed as data; run-time compilers read them from here."""
